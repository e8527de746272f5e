import { expect, it } from "vitest";
import { en } from "./en";
import { zh } from "./zh";

type Texts = { [name: string]: unknown };

/** Return all texts by their path, such as `run.cancel`. */
function flat(texts: Texts, prefix = ""): Map<string, unknown> {
  const all = new Map<string, unknown>();
  for (const [name, value] of Object.entries(texts)) {
    if (typeof value !== "object") all.set(prefix + name, value);
    else for (const [path, text] of flat(value as Texts, `${prefix}${name}.`)) all.set(path, text);
  }
  return all;
}

const [english, chinese] = [flat(en), flat(zh)];

it("has every text in both languages", () => {
  expect([...chinese.keys()].sort()).toEqual([...english.keys()].sort());
});

it("has no text that was left in English", () => {
  const same = [...english].filter(([name, text]) => typeof text === "string" && chinese.get(name) === text);
  expect(same.map(([name]) => name)).toEqual(["run.shortcut", "result.actual"]);
});
