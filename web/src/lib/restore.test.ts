import { expect, it } from "vitest";
import { restored } from "./restore";

it("takes over what a request can have", () => {
  const job = {
    task: "img2img",
    guidance_rows: 2,
    image: "a".repeat(64),
    prompt: "a house",
    negative_prompt: "",
    seed: 0,
    eta: 0,
    num_images: 1,
    strength: 0.6,
    denoising_end: 0.7,
    scheduler: "dpm++_2m",
    sigmas: "karras",
    speed: "exact",
    guess_mode: true,
    width: 128,
    height: 128,
    loras: [{ name: "ink", scale: 0.8 }],
    controls: [{ type: "canny", image: null, preprocess: true, scale: 0.5, start: 0, end: 1 }],
  };
  expect(restored(job)).toEqual({
    mode: "transform",
    values: {
      prompt: "a house",
      seed: 0,
      strength: 0.6,
      denoising_end: 0.7,
      scheduler: "dpm++_2m",
      sigmas: "karras",
      guess_mode: true,
      width: 128,
      height: 128,
      loras: [{ name: "ink", scale: 0.8 }],
    },
    controls: [{ type: "canny", preprocess: true, scale: 0.5, start: 0, end: 1 }],
  });
});

it("knows what a mask begins with", () => {
  const inpaint = (content: string) => restored({ task: "inpaint", region: { blur: 4, content } }).values;
  expect(inpaint("noise")).toEqual({ mask_blur: 4, mask_content: "noise" });
  expect(inpaint("original")).toEqual({ mask_blur: 4 });
});

it("knows a background that was replaced", () => {
  const job = {
    task: "inpaint",
    prompt: "a beach",
    background: "keep",
    region: { blur: 4, background: true },
  };
  expect(restored(job).values).toEqual({ background: { prompt: "a beach" }, mask_blur: 4 });
  expect(restored({ task: "img2img", background: "transparent" }).values).toEqual({
    background: "transparent",
  });
});

it("knows margins and the mode", () => {
  const region = { blur: 4, margins: { left: 32, top: 0, right: 0, bottom: 0 }, canvas: [160, 128] };
  expect(restored({ task: "inpaint", region }).values).toEqual({ outpaint: region.margins, mask_blur: 4 });
  expect(restored({ task: "inpaint", region: { canvas: [160, 128] } }).values).toEqual({ mask_blur: 0 });
  expect(restored({ task: "inpaint", region: { blur: 4, padding: 0 } }).values.mask_padding).toBe(0);
  expect(restored({ task: "inpaint", region: { blur: 4, padding: null } }).values).not.toHaveProperty(
    "mask_padding",
  );
  expect(restored({ task: "edit", instruction: "make it night" })).toMatchObject({
    mode: "edit",
    values: { instruction: "make it night" },
  });
});
