import { readFileSync } from "node:fs";
import { expect, it } from "vitest";
import { pngMetadata } from "./png-metadata";

const PNG = new Uint8Array(readFileSync("../examples/input.png"));

/** Insert a chunk after the header of a PNG. The check sum is not read. */
function withChunk(type: string, data: string): Blob {
  const bytes = new TextEncoder().encode(data);
  const chunk = new Uint8Array(bytes.length + 12);
  new DataView(chunk.buffer).setUint32(0, bytes.length);
  chunk.set(new TextEncoder().encode(type), 4);
  chunk.set(bytes, 8);
  const header = 8 + 25;
  return new Blob([PNG.slice(0, header), chunk, PNG.slice(header)]);
}

it("reads the parameters of a result", async () => {
  const file = withChunk("iTXt", 'img2img\0\0\0\0\0{"prompt": "房子", "seed": 7}');
  expect(await pngMetadata(file)).toEqual({ prompt: "房子", seed: 7 });
});

it("finds none in other images", async () => {
  expect(await pngMetadata(new Blob([PNG]))).toBeNull();
  expect(await pngMetadata(new Blob(["not an image"]))).toBeNull();
  expect(await pngMetadata(withChunk("iTXt", "img2img\0\0\0\0\0{"))).toBeNull();
  expect(await pngMetadata(withChunk("tEXt", "Comment\0x"))).toBeNull();
});
