import { expect, it } from "vitest";
import { lightToMask } from "./operations";

it("reads a mask file as the service does", () => {
  const black = [0, 0, 0, 255];
  const white = [255, 255, 255, 255];
  const transparent = [255, 255, 255, 0];
  const [dark, light] = [
    [127, 127, 127, 255],
    [128, 128, 128, 255],
  ];
  const data = new Uint8ClampedArray([...black, ...white, ...transparent, ...(dark ?? []), ...(light ?? [])]);
  lightToMask(data);
  const opacity = [3, 7, 11, 15, 19].map((at) => data[at]);
  expect(opacity).toEqual([0, 255, 0, 0, 255]);
});
