import { afterEach, expect, it, vi } from "vitest";
import { useResult } from "./actions";
import { fieldErrors, formError } from "./form";
import { cancelRun, runs, submit } from "./runs";

afterEach(() => vi.unstubAllGlobals());

const JOB = {
  id: "a1",
  status: "queued",
  images: [],
  request: { task: "img2img", num_images: 1 },
  progress: { fraction: 0 },
  timings: {},
};

function json(body: unknown, status = 200): Response {
  return new Response(JSON.stringify(body), { status, headers: { "Content-Type": "application/json" } });
}

it("cancels a job whose run was cancelled while it was sent", async () => {
  const calls: string[] = [];
  let answer: (response: Response) => void = () => undefined;
  vi.stubGlobal("fetch", (input: Request | string, init?: RequestInit) => {
    const { url, method } = typeof input === "string" ? { url: input, method: init?.method ?? "GET" } : input;
    const path = new URL(url).pathname;
    calls.push(`${method} ${path}`);
    if (path.endsWith("/img2img")) {
      return new Promise<Response>((resolve) => {
        answer = resolve;
      });
    }
    if (path.endsWith("/events")) return new Promise<Response>(() => undefined);
    return Promise.resolve(json({ ...JOB, status: "cancelled" }));
  });
  const submitted = submit([{ label: "", request: { image: "x" } }]);
  await vi.waitFor(() => expect(calls).toEqual(["POST /img2img"]));
  const run = runs.value.at(-1);
  if (run) await cancelRun(run);
  answer(json(JOB, 202));
  await submitted;
  expect(calls.filter((call) => call.includes("/jobs/a1") && !call.includes("events"))).toEqual([
    expect.stringMatching(/^(POST|DELETE) \/jobs\/a1/),
  ]);
});

it("shows why a result cannot be used", async () => {
  vi.stubGlobal("fetch", () => Promise.resolve(json({ detail: "The job has expired." }, 410)));
  fieldErrors.value = [];
  expect(await useResult("a1", 0)).toBe(false);
  expect(formError.value).toBe("The job has expired.");
});
