// Edit an image with the OpenAI package. Arguments: URL, input, output.
import { createReadStream } from "node:fs";
import { writeFile } from "node:fs/promises";
import OpenAI, { toFile } from "openai";

const [url, input, output] = process.argv.slice(2);
const api = new OpenAI({ baseURL: new URL("/v1", url).href, apiKey: "none", maxRetries: 0 });
const image = await toFile(createReadStream(input), "input.png", { type: "image/png" });
const answer = await api.images.edit({ image, prompt: "a pencil sketch", n: 2, strength: 0.6 });
if (answer.data.length !== 2) throw new Error(`${answer.data.length} images instead of 2`);
await writeFile(output, Buffer.from(answer.data[0].b64_json, "base64"));
const rejected = await api.images.edit({ image, prompt: "x", quality: "best" }).catch((error) => error);
if (rejected.status !== 400 || rejected.param !== "quality" || !rejected.requestID) throw rejected;
if (!rejected.message.includes("Input should be")) throw rejected;
const unsupported = await api.images.generate({ prompt: "x" }).catch((error) => error);
if (unsupported.status !== 404 || !unsupported.message.includes("is not supported")) throw unsupported;
const again = await api.images.edit({ image, prompt: "a pencil sketch", strength: 0.6, response_format: "url" });
console.log(new URL(again.data[0].url).pathname.split("/")[2]);
