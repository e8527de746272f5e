// Submit an image and save the result, with a client of @hey-api/openapi-ts. Arguments: URL, input, output.
import { readFile, writeFile } from "node:fs/promises";
import { createClient } from "./img2img-client/client/index.js";
import { getJob, getResult, submitImg2Img } from "./img2img-client/index.js";

const [url, input, output] = process.argv.slice(2);
const client = createClient({ baseUrl: url });
const image = await readFile(input, "base64");
const body = { image, prompt: "a pencil sketch", strength: 0.6 };
const { data: submitted } = await submitImg2Img({ client, body, throwOnError: true });
if (!("id" in submitted)) throw new Error("a dry run creates no job");
let job = submitted;
while (job.status === "queued" || job.status === "running") {
  const path = { job_id: job.id };
  ({ data: job } = await getJob({ client, path, query: { wait: 30 }, throwOnError: true }));
}
const { data: result } = await getResult({ client, path: { job_id: job.id }, throwOnError: true });
await writeFile(output, Buffer.from(await result.arrayBuffer()));
console.log(job.id);
