// Submit an image, follow the progress of the job, and save the result. Runs with Node 22.18 or newer, Deno and Bun:
//   node examples/typescript/image_to_image.ts photo.jpg "a watercolor painting"
import { readFile, writeFile } from "node:fs/promises";

const service = process.env.IMG2IMG_URL ?? "http://127.0.0.1:8000";
const headers = { "X-API-Key": process.env.IMG2IMG_API_KEY ?? "none" };
const [image = new URL("../input.png", import.meta.url), prompt = "a watercolor painting"] = process.argv.slice(2);

const call = async (path = "", options = {}) => {
  const response = await fetch(service + path, { headers, ...options });
  if (response.ok) return response;
  // RFC 9457: `code` is stable, and `type` is the address of its explanation.
  const problem = await response.json();
  throw new Error(`${problem.code}: ${problem.detail} (${service}${problem.type})`);
};

const form = new FormData();
form.append("image", new Blob([await readFile(image)]));
form.append("prompt", prompt);
form.append("strength", "0.6");
let job = await (await call("/img2img", { method: "POST", body: form })).json();
while (job.status === "queued" || job.status === "running") {
  // Responds when the job has ended, at the latest after 10 seconds.
  job = await (await call(`/jobs/${job.id}?wait=10`)).json();
  console.log(`${job.status}, ${Math.round(100 * job.progress.fraction)} %`);
}
if (job.status !== "succeeded") throw new Error(job.error?.message ?? job.status);
const result = await call(job.images[0].url);
await writeFile("result.png", Buffer.from(await result.arrayBuffer()));
console.log("result.png");
