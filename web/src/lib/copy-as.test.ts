import { describe, expect, it } from "vitest";
import { codeFor, pythonValue, quoted } from "./copy-as";

const SHA = "a".repeat(64);
const REQUEST = {
  image: SHA,
  prompt: "it's a house",
  strength: 0.6,
  num_inference_steps: 4,
  prompt_weighting: true,
};
const OPEN = { service: "http://127.0.0.1:8000", needsKey: false };
const KEYED = { service: "https://images.example", needsKey: true };

it("quotes text for a shell", () => {
  expect(quoted("a/b-1.png")).toBe("a/b-1.png");
  expect(quoted("it's $5")).toBe("'it'\\''s $5'");
});

it("writes JSON values in Python", () => {
  const value = [{ type: "canny", preprocess: false, image: null }, 'a "b" ü\n'];
  expect(pythonValue(value)).toBe(
    '[{"type": "canny", "preprocess": False, "image": None}, "a \\"b\\" ü\\n"]',
  );
});

describe("codeFor", () => {
  it("writes a command with the options of the command line", () => {
    const command = codeFor("cli", REQUEST, OPEN);
    expect(command).toContain(`img2img submit ${SHA} \\\n  --prompt 'it'\\''s a house'`);
    expect(command).toContain("--steps 4 \\\n  --prompt-weighting \\\n");
  });

  it("writes an option for each further image", () => {
    const command = codeFor("cli", { image: SHA, instruction: "x", images: ["b", "c"], speed: "fast" }, OPEN);
    expect(command).toContain("--reference b \\\n  --reference c \\\n  --speed fast");
  });

  it("keeps a value that begins with a hyphen apart from the options", () => {
    expect(codeFor("cli", { image: SHA, prompt: "-a" }, OPEN)).toContain("--prompt=-a \\\n");
  });

  it("never contains the key", () => {
    for (const language of ["curl", "python", "typescript"] as const) {
      expect(codeFor(language, REQUEST, KEYED)).toContain("IMG2IMG_API_KEY");
      expect(codeFor(language, REQUEST, OPEN)).not.toContain("IMG2IMG_API_KEY");
    }
  });
});
