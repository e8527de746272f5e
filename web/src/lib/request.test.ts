import { describe, expect, it } from "vitest";
import type { Job, JobImage } from "../api/generated/types.gen";
import type { Values } from "../state/form";
import { fileName } from "./file-name";
import { buildRequest, isLostToMask, takes, taskOf } from "./request";
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

  it("hides how images are fitted where none is", () => {
    expect(takes(situationWith(), "resize")).toBe(true);
    expect(takes(situationWith({ hasMask: true }), "resize")).toBe(false);
    expect(takes(situationWith({ hasMask: true, hasControls: true }), "resize")).toBe(true);
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

  it("knows what needs another field", () => {
    const parameters = { subseed: ["img2img" as const], pag_adaptive_scale: ["img2img" as const] };
    const shown = (values: Values) => {
      const situation = situationWith({ card: { ...CARD, parameters }, values });
      return (["reuse", "subseed", "pag_adaptive_scale", "exact_steps"] as const).filter((field) =>
        takes(situation, field),
      );
    };
    expect(shown({})).toEqual(["exact_steps"]);
    expect(shown({ seed: 0, denoising_start: 0.5 })).toEqual(["reuse"]);
    expect(shown({ seed: -1 })).toEqual(["exact_steps"]);
    expect(shown({ subseed_strength: 0.1, pag_scale: 3 })).toEqual([
      "subseed",
      "pag_adaptive_scale",
      "exact_steps",
    ]);
  });

  it("knows which models take several images, in an edit", () => {
    const card = { ...CARD, max_images: 3 };
    expect(takes(situationWith({ card, mode: "edit" }), "images")).toBe(true);
    expect(takes(situationWith({ card }), "images")).toBe(false);
    expect(takes(situationWith({ mode: "edit" }), "images")).toBe(false);
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

  it("sends the images of an instruction", () => {
    const values = { instruction: "put them on a table" };
    const situation = situationWith({ card: { ...CARD, max_images: 2 }, mode: "edit", values });
    const images = { ...IMAGE, images: ["b".repeat(64)] };
    expect(buildRequest(situation, images)).toEqual({ ...images, ...values });
  });

  describe("with a background", () => {
    const card = { ...CARD, matting: true };
    const background = { prompt: "a beach" };
    const values = { prompt: "a house", mask_blur: 8, mask_padding: 32, outpaint: { left: 8 } };
    const images = { ...IMAGE, mask: "b".repeat(64) };

    it("replaces it in place of a prompt and of a mask", () => {
      const situation = situationWith({ card, hasMask: true, values: { ...values, background } });
      expect(taskOf(situation)).toBe("inpaint");
      expect(buildRequest(situation, images)).toEqual({ ...IMAGE, background, mask_blur: 8 });
    });

    it("replaces it only where the model can", () => {
      for (const changes of [{ card: CARD }, { card: { ...card, tasks: ["img2img" as const] } }]) {
        const situation = situationWith({ ...changes, values: { prompt: "a house", background } });
        expect(buildRequest(situation, IMAGE)).toEqual({ ...IMAGE, prompt: "a house" });
      }
      const edit = situationWith({ card, mode: "edit", values: { instruction: "add snow", background } });
      expect(buildRequest(edit, IMAGE)).toEqual({ ...IMAGE, instruction: "add snow" });
    });

    it("makes it transparent with every task", () => {
      for (const mode of ["transform", "edit", "upscale"] as const) {
        const situation = situationWith({ card, mode, values: { background: "transparent" } });
        expect(buildRequest(situation, IMAGE)).toEqual({ ...IMAGE, background: "transparent" });
      }
    });
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

it("knows what only a mask takes away", () => {
  const masked = situationWith({ hasMask: true });
  expect(["loras", "resize", "strength"].map((field) => isLostToMask(masked, field as "loras"))).toEqual([
    true,
    true,
    false,
  ]);
  expect(isLostToMask(situationWith(), "loras")).toBe(false);
  // Not lost: an edit has none either.
  expect(isLostToMask(situationWith({ hasMask: true, mode: "edit" }), "resize")).toBe(false);
});

it("names the file of a result after its prompt and seed", () => {
  const image = { index: 0, seed: 7 } as JobImage;
  const named = (request: object) =>
    fileName({ id: "a1b2c3d4e5", request: request as Job["request"] }, image);
  expect(named({ task: "img2img", prompt: "A house, by the lake!" })).toBe("a-house-by-the-lake-7.png");
  expect(named({ task: "edit", instruction: "画成夜晚" })).toBe("画成夜晚-7.png");
  expect(named({ task: "mask" })).toBe("mask-a1b2c3d4-0.png");
});
