/** Reads the parameters that the service writes into a PNG: an iTXt chunk named `img2img` with JSON. */

const SIGNATURE = 8;
const KEYWORD = "img2img\0\0\0\0\0";
// The chunk is before the pixels. More is not read of a large file.
const READ = 256 * 1024;

/** Return the parameters of a result of the service; null for another image. */
export async function pngMetadata(file: Blob): Promise<Record<string, unknown> | null> {
  const bytes = new Uint8Array(await file.slice(0, READ).arrayBuffer());
  const view = new DataView(bytes.buffer);
  const latin1 = new TextDecoder("latin1");
  if (latin1.decode(bytes.subarray(1, 4)) !== "PNG") return null;
  for (let at = SIGNATURE; at + 8 <= bytes.length; ) {
    const length = view.getUint32(at);
    const type = latin1.decode(bytes.subarray(at + 4, at + 8));
    const data = bytes.subarray(at + 8, at + 8 + length);
    if (type === "IDAT") return null;
    if (type === "iTXt" && latin1.decode(data.subarray(0, KEYWORD.length)) === KEYWORD) {
      try {
        return JSON.parse(new TextDecoder().decode(data.subarray(KEYWORD.length)));
      } catch {
        return null;
      }
    }
    at += 12 + length;
  }
  return null;
}
