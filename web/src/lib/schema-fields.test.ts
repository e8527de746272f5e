import { readFileSync } from "node:fs";
import { expect, it } from "vitest";
import { schemaFields } from "./schema-fields";

const DOCUMENT = JSON.parse(readFileSync("../openapi.json", "utf8"));

it("reads the scalar fields of the request from the service's document", () => {
  const fields = new Map(
    schemaFields(DOCUMENT, "Img2ImgRequest", new Set(["seed"])).map((one) => [one.name, one]),
  );
  expect(fields.get("strength")).toMatchObject({ kind: "number", minimum: 0, maximum: 1 });
  expect(fields.get("clip_skip")).toMatchObject({ kind: "integer", minimum: 0, fallback: 0 });
  expect(fields.get("prompt_weighting")).toMatchObject({ kind: "boolean", fallback: false });
  expect(fields.get("priority")?.options).toEqual(["low", "normal", "high"]);
  expect(fields.get("resize")?.kind).toBe("choice");
  for (const absent of ["seed", "controls", "loras", "outpaint"]) expect(fields.has(absent)).toBe(false);
});
