// Submit an image and save the result, with a client of openapi-generator's `typescript-fetch`. Arguments: URL, input, output.
import { readFile, writeFile } from "node:fs/promises";
import { Configuration, JobsApi } from "./img2img-client/index.js";

const [url, input, output] = process.argv.slice(2);
const jobs = new JobsApi(new Configuration({ basePath: url }));
const image = await readFile(input, "base64");
const img2ImgRequest = { image, prompt: "a pencil sketch", strength: 0.6 };
const submitted = await jobs.submitImg2img({ img2ImgRequest });
if (!("id" in submitted)) throw new Error("a dry run creates no job");
let job = submitted;
while (job.status === "queued" || job.status === "running") {
  job = await jobs.getJob({ jobId: job.id, wait: 30 });
}
const result = await jobs.getResult({ jobId: job.id });
await writeFile(output, Buffer.from(await result.arrayBuffer()));
console.log(job.id);
