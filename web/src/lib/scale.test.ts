import { expect, it } from "vitest";
import { fittingSize, MAX_PIXELS } from "./scale";

it("keeps the size of an image that fits", () => {
  expect(fittingSize(4000, 4000, MAX_PIXELS)).toEqual([4000, 4000]);
});

it("scales a larger image down to the limit, with its aspect ratio", () => {
  const [width, height] = fittingSize(8000, 5000, MAX_PIXELS);
  expect(width * height).toBeLessThanOrEqual(MAX_PIXELS);
  expect(width * height).toBeGreaterThan(MAX_PIXELS * 0.99);
  expect(width / height).toBeCloseTo(8000 / 5000, 2);
});

it("keeps a pixel of a very narrow image", () => {
  expect(fittingSize(60_000_000, 1, MAX_PIXELS)[1]).toBe(1);
});
