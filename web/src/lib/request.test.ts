import { describe, expect, it } from "vitest";
import type { Values } from "../state/form";
import { buildRequest, takes, taskOf } from "./request";
import { CARD, situationWith } from "./testing";

const IMAGE = { image: "a".repeat(64) };

describe("taskOf", () => {
  it("follows the fields of the request", () => {
    expect(taskOf(situationWith())).toBe("img2img");
    expect(taskOf(situationWith({ hasMask: true }))).toBe("inpaint");
    expect(taskOf(situationWith({ values: { outpaint: { left: 8 } } }))).toBe("inpaint");
    expect(taskOf(situationWith({ values: { outpaint: { left: 0 } } }))).toBe("img2img");
    expect(taskOf(situationWith({ hasImage: false, hasControls: true }))).toBe("control");
    expect(taskOf(situationWith({ mode: "edit" }))).toBe("edit");
  });
});

describe("takes", () => {
  it("hides what the model cannot do", () => {
    const plain = { ...CARD, tasks: ["img2img" as const], controls: [], loras: [], image_prompts: false };
    const situation = situationWith({ card: plain });
    for (const field of ["mask", "outpaint", "controls", "loras", "image_prompts"] as const) {
      expect(takes(situation, field)).toBe(false);
      expect(takes(situationWith(), field)).toBe(true);
    }
  });

  it("hides what has no effect without guidance", () => {
    expect(takes(situationWith(), "negative_prompt")).toBe(true);
    expect(takes(situationWith({ values: { guidance_scale: 1 } }), "negative_prompt")).toBe(false);
    expect(takes(situationWith({ card: { ...CARD, guidance: false } }), "guidance_scale")).toBe(false);
  });

  it("knows which tasks take an optional parameter", () => {
    expect(takes(situationWith(), "eta")).toBe(true);
    expect(takes(situationWith({ hasMask: true }), "eta")).toBe(false);
    expect(takes(situationWith(), "clip_skip")).toBe(false);
  });

  it("knows which models take other schedules, fewer calls and other contents of a mask", () => {
    const card = {
      ...CARD,
      mask_content: true,
      scheduler_sigmas: { euler: ["karras" as const] },
      scheduler_parameters: { speed: ["euler" as const] },
      control_parameters: { guess_mode: ["img2img" as const] },
    };
    for (const field of ["mask_content", "sigmas", "speed", "guess_mode"] as const) {
      expect(takes(situationWith({ hasMask: field === "mask_content" }), field)).toBe(false);
    }
    expect(takes(situationWith({ card, hasMask: true }), "mask_content")).toBe(true);
    expect(takes(situationWith({ card }), "mask_content")).toBe(false);
    expect(takes(situationWith({ card }), "sigmas")).toBe(true);
    expect(takes(situationWith({ card }), "speed")).toBe(true);
    expect(takes(situationWith({ card }), "guess_mode")).toBe(false);
    expect(takes(situationWith({ card, hasControls: true }), "guess_mode")).toBe(true);
    const upscale = { mode: "upscale" as const, values: { upscale: 4 as const } };
    expect(takes(situationWith({ card, ...upscale }), "sigmas")).toBe(false);
    expect(takes(situationWith({ card, ...upscale }), "speed")).toBe(false);
  });

  it("knows where a refiner works", () => {
    const card = { ...CARD, refiner: true };
    expect(takes(situationWith(), "denoising_end")).toBe(false);
    expect(takes(situationWith({ card }), "denoising_end")).toBe(true);
    expect(takes(situationWith({ card, hasMask: true }), "denoising_end")).toBe(true);
    expect(takes(situationWith({ card, hasControls: true }), "denoising_end")).toBe(false);
    expect(takes(situationWith({ card, mode: "upscale" }), "denoising_end")).toBe(false);
  });

  it("leaves strength out where a super-resolution model works", () => {
    expect(takes(situationWith({ mode: "upscale", values: { upscale: 4 } }), "strength")).toBe(false);
    expect(takes(situationWith({ mode: "upscale", values: { upscale: 2 } }), "strength")).toBe(true);
  });
});

describe("buildRequest", () => {
  it("sends only fields that were given", () => {
    const values = { prompt: "a house", negative_prompt: "", seed: 0, strength: null, loras: [] };
    expect(buildRequest(situationWith({ values }), IMAGE)).toEqual({ ...IMAGE, prompt: "a house", seed: 0 });
  });

  it("leaves out fields of other tasks", () => {
    const values = { prompt: "a house", instruction: "make it night", strength: 0.4, mask_blur: 8 };
    const edit = buildRequest(situationWith({ mode: "edit", values }), IMAGE);
    expect(edit).toEqual({ ...IMAGE, instruction: "make it night" });
    const transform = buildRequest(situationWith({ values }), IMAGE);
    expect(transform).toEqual({ ...IMAGE, prompt: "a house", strength: 0.4 });
  });

  it("takes no webhook and no images from the values of a link", () => {
    const values = {
      prompt: "x",
      webhook: "https://evil.example",
      images: ["b"],
      image: "b".repeat(64),
    } as Values;
    expect(buildRequest(situationWith({ values }), IMAGE)).toEqual({ ...IMAGE, prompt: "x" });
  });

  it("sends the options of a mask only with a mask", () => {
    const values = { prompt: "a house", mask_blur: 8 };
    const request = buildRequest(situationWith({ hasMask: true, values }), {
      ...IMAGE,
      mask: "b".repeat(64),
    });
    expect(request).toMatchObject({ mask: "b".repeat(64), mask_blur: 8 });
  });
});
