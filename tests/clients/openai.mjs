// Edits a picture with OpenAI's own package. Arguments: URL, picture, output.
import { createReadStream } from "node:fs";
import { writeFile } from "node:fs/promises";
import OpenAI, { toFile } from "openai";

const [url, picture, output] = process.argv.slice(2);
const api = new OpenAI({ baseURL: new URL("/v1", url).href, apiKey: "none", maxRetries: 0 });
const image = await toFile(createReadStream(picture), "input.png", { type: "image/png" });
const answer = await api.images.edit({ image, prompt: "a pencil sketch", n: 2, strength: 0.6 });
if (answer.data.length !== 2) throw new Error(`${answer.data.length} pictures instead of 2`);
await writeFile(output, Buffer.from(answer.data[0].b64_json, "base64"));
const refused = await api.images.edit({ image, prompt: "x", quality: "high" }).catch((error) => error);
if (refused.status !== 422 || refused.param !== "quality") throw refused;
const again = await api.images.edit({ image, prompt: "a pencil sketch", strength: 0.6, response_format: "url" });
console.log(new URL(again.data[0].url).pathname.split("/")[2]);
