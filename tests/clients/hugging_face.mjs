// Transform an image with the Hugging Face package. Arguments: URL, input, output.
import { readFile, writeFile } from "node:fs/promises";
import { InferenceClient } from "@huggingface/inference";

const [url, input, output] = process.argv.slice(2);
const endpointUrl = new URL("/hf/demo", url).href;
const api = new InferenceClient("none").endpoint(endpointUrl);
const inputs = new Blob([await readFile(input)], { type: "image/png" });
const raw = await api.imageToImage({ inputs });
if (raw.type !== "image/png") throw new Error(raw.type);
const image = await api.imageToImage({ inputs, parameters: { prompt: "a pencil sketch", strength: 0.6 } });
await writeFile(output, Buffer.from(await image.arrayBuffer()));
const rejected = await api.imageToImage({ inputs, parameters: { strength: 2 } }).catch((error) => error);
if (!rejected.message.includes("strength: Input should be less than or equal to 1")) throw rejected;
const { jobs } = await (await fetch(new URL("/jobs?limit=1", url))).json();
console.log(jobs[0].id);
