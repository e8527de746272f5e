import { expect, it } from "vitest";
import { fromHash, toHash } from "./share";

it("brings settings back", () => {
  const settings = { mode: "transform", values: { prompt: "ein Häuschen – 房子 ???>>>", seed: 7 } };
  const hash = toHash(settings);
  expect(hash).toMatch(/^#settings=[\w-]+$/);
  expect(fromHash(hash)).toEqual(settings);
});

it("ignores what it does not know", () => {
  for (const hash of ["", "#result", "#settings=%%%", "#settings=bm8"]) expect(fromHash(hash)).toBeNull();
});
