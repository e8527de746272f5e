import type { Img2ImgRequest } from "../api/generated/types.gen";

export type CodeLanguage = "curl" | "python" | "typescript" | "cli";

export const CODE_LANGUAGES: Record<CodeLanguage, string> = {
  curl: "curl",
  python: "Python",
  typescript: "TypeScript",
  cli: "img2img",
};

/** What the code is written for. */
export interface Target {
  /** URL of the service, without a slash at the end. */
  service: string;
  /** Whether the service requires an API key. The code takes it from the environment. */
  needsKey: boolean;
}

/** Return a program that sends the request, waits for the job and saves its first image as `result.png`. */
export function codeFor(language: CodeLanguage, request: Img2ImgRequest, target: Target): string {
  return { curl, python, typescript, cli }[language](request, target);
}

const KEY_VARIABLE = "IMG2IMG_API_KEY";

function curl(request: Img2ImgRequest, { service, needsKey }: Target): string {
  const command = needsKey ? `curl -sS -H "Authorization: Bearer $${KEY_VARIABLE}"` : "curl -sS";
  return `job=$(${command} ${service}/img2img -H 'Content-Type: application/json' -d ${quoted(json(request))} |
  sed 's/.*"id":"\\([0-9a-f]*\\)".*/\\1/')
while ${command} "${service}/jobs/$job?wait=30" | grep -qE '"status":"(queued|running)"'; do :; done
${command} -o result.png ${service}/jobs/$job/images/0
`;
}

function json(request: Img2ImgRequest): string {
  return JSON.stringify(request, null, 2);
}

/** Quote text for a POSIX shell. */
export function quoted(text: string): string {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

function python(request: Img2ImgRequest, { service, needsKey }: Target): string {
  const fields = Object.entries(request).map(([name, value]) => `        ${name}=${pythonValue(value)},\n`);
  const key = needsKey ? `, api_key=os.environ["${KEY_VARIABLE}"]` : "";
  return `${needsKey ? "import os\n" : ""}from pathlib import Path

from img2img import Client

with Client(${pythonValue(service)}${key}) as client:
    [image, *_] = client.generate(
${fields.join("")}    )
Path("result.png").write_bytes(image)
`;
}

/** Write a JSON value in Python. */
export function pythonValue(value: unknown): string {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(pythonValue).join(", ")}]`;
  if (typeof value !== "object") return JSON.stringify(value);
  const entries = Object.entries(value).map(
    ([name, item]) => `${JSON.stringify(name)}: ${pythonValue(item)}`,
  );
  return `{${entries.join(", ")}}`;
}

function typescript(request: Img2ImgRequest, { service, needsKey }: Target): string {
  const key = needsKey ? `Authorization: \`Bearer \${process.env.${KEY_VARIABLE}}\`` : "";
  return `import { writeFile } from "node:fs/promises";

const service = ${JSON.stringify(service)};
const headers = { ${[key, '"Content-Type": "application/json"'].filter(Boolean).join(", ")} };
const request = ${json(request)};
let job = await (
  await fetch(\`\${service}/img2img\`, { method: "POST", headers, body: JSON.stringify(request) })
).json();
while (job.status === "queued" || job.status === "running") {
  job = await (await fetch(\`\${service}/jobs/\${job.id}?wait=30\`, { headers })).json();
}
const result = await fetch(\`\${service}\${job.images[0].url}\`, { headers });
await writeFile("result.png", Buffer.from(await result.arrayBuffer()));
`;
}

const OPTION_NAMES: Record<string, string> = { num_inference_steps: "steps" };

function cli({ image, ...fields }: Img2ImgRequest, { service }: Target): string {
  const options = Object.entries(fields).flatMap(([name, value]) =>
    name === "images" ? (value as string[]).map((one) => option("reference", one)) : option(name, value),
  );
  const all = [`img2img submit ${image ?? ""}`.trimEnd(), ...options, `--url ${service}`];
  // Several images have names of their own.
  all.push((fields.num_images ?? 1) > 1 ? "-o 'result-{index}.png'" : "-o result.png");
  return `${all.join(" \\\n  ")}\n`;
}

function option(name: string, value: unknown): string {
  const flag = `--${(OPTION_NAMES[name] ?? name).replaceAll("_", "-")}`;
  if (value === true) return flag;
  if (value === false) return `--no-${flag.slice(2)}`;
  const text = typeof value === "object" ? JSON.stringify(value) : String(value);
  // A value that begins with a hyphen looks like another option.
  return `${flag}${text.startsWith("-") ? "=" : " "}${quoted(text)}`;
}
