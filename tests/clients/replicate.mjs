// Run a model with the Replicate package. Arguments: URL, input, output.
import { readFile, writeFile } from "node:fs/promises";
import Replicate, { parseProgressFromLogs } from "replicate";

const [url, input, output] = process.argv.slice(2);
const api = new Replicate({ auth: "none", baseUrl: new URL("/replicate/v1", url).href });
const image = await readFile(input);
const files = await api.run("img2img/demo", { input: { image, prompt: "a pencil sketch", prompt_strength: 0.6, num_outputs: 2 } });
if (files.length !== 2) throw new Error(`${files.length} images instead of 2`);
await writeFile(output, Buffer.from(await (await files[0].blob()).arrayBuffer()));
const done = (await api.predictions.list()).results[0];
if (done.status !== "succeeded" || parseProgressFromLogs(done)?.percentage !== 1) throw new Error(JSON.stringify(done));
const input2 = { image: done.output[0], prompt: "a pencil sketch" };
const created = await api.predictions.create({ model: "img2img/demo", input: input2 });
await api.wait(created, {});
await api.predictions.cancel(created.id);
const rejected = await api.run("img2img/demo", { input: { image, prompt_strength: 2 } }).catch((error) => error);
if (!rejected.message.includes("input.prompt_strength: Input should be")) throw rejected;
console.log(done.id);
