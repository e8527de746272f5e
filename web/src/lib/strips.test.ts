import { expect, it } from "vitest";
import { parseValues, STRENGTHS, vary } from "./strips";

it("varies one field and keeps the seed", () => {
  const cells = vary({ prompt: "x", num_images: 4 }, { field: "strength", values: STRENGTHS });
  expect(cells.map(({ label }) => label)).toEqual(["0.2", "0.4", "0.6", "0.8", "1"]);
  expect(cells.map(({ request }) => request.strength)).toEqual(STRENGTHS);
  expect(new Set(cells.map(({ request }) => request.seed)).size).toBe(1);
  expect(cells.every(({ request }) => request.num_images === 1)).toBe(true);
});

it("keeps a seed that was given", () => {
  const [cell] = vary({ seed: 7 }, { field: "scheduler", values: ["ddim"] });
  expect(cell?.request).toMatchObject({ seed: 7, scheduler: "ddim" });
});

it("makes a table row by row", () => {
  const columns = { field: "strength" as const, values: [0.2, 0.4] };
  const cells = vary({}, columns, { field: "seed", values: [1, 2] });
  expect(cells.map(({ request: { strength, seed } }) => [strength, seed])).toEqual([
    [0.2, 1],
    [0.4, 1],
    [0.2, 2],
    [0.4, 2],
  ]);
});

it("reads typed values", () => {
  expect(parseValues(" 0.2, 0.5 ,x,, 1", "strength")).toEqual([0.2, 0.5, 1]);
  expect(parseValues("ddim, euler", "scheduler")).toEqual(["ddim", "euler"]);
});
