import { afterEach, expect, it, vi } from "vitest";
import type { Job } from "../api/generated/types.gen";
import { longDuration } from "../lib/duration";
import { useResult } from "./actions";
import { fieldErrors, formError } from "./form";
import { addToHistory, historyIds, historyJobs, keptSeconds } from "./history";
import { track } from "./jobs";
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

it("submits several requests as one batch, and cancels it as one", async () => {
  const calls: string[] = [];
  const jobs = ["b0", "b1"].map((id, index) => ({ ...JOB, id, batch: { id: "b", index, name: null } }));
  let sent = "";
  vi.stubGlobal("fetch", async (input: Request | string, init?: RequestInit) => {
    const { url, method } = typeof input === "string" ? { url: input, method: init?.method ?? "GET" } : input;
    const path = new URL(url).pathname;
    calls.push(`${method} ${path}`);
    if (path.endsWith("/events")) return new Promise<Response>(() => undefined);
    if (path.endsWith("/batches")) sent = String(init?.body);
    const body = path.endsWith("/batches/b/jobs") ? { jobs, next_cursor: null } : { id: "b" };
    return json(body, path.endsWith("/batches") ? 202 : 200);
  });
  await submit([
    { label: "1", request: { image: "x", seed: 1 } },
    { label: "2", request: { image: "x", seed: 2 } },
  ]);
  expect(sent).toBe('{"image":"x","seed":1}\n{"image":"x","seed":2}');
  const run = runs.value.at(-1);
  expect(run?.cells.map(({ jobId }) => jobId)).toEqual(["b0", "b1"]);
  if (run) await cancelRun(run);
  const changing = calls.filter((call) => call.startsWith("POST"));
  expect(changing).toEqual(["POST /batches", "POST /batches/b/cancel"]);
});

it("shows the errors of a batch at the fields of the form", async () => {
  const errors = [0, 1].map((at) => ({ field: `items.${at}.strength`, message: "too high" }));
  vi.stubGlobal("fetch", () => Promise.resolve(json({ detail: "wrong", errors }, 422)));
  const before = runs.value.length;
  await submit([
    { label: "1", request: { image: "x", strength: 2 } },
    { label: "2", request: { image: "x", strength: 3 } },
  ]);
  expect(fieldErrors.value).toEqual([{ field: "strength", message: "too high" }]);
  expect(runs.value).toHaveLength(before);
});

it("shows why a result cannot be used", async () => {
  vi.stubGlobal("fetch", () => Promise.resolve(json({ detail: "The job has expired." }, 410)));
  fieldErrors.value = [];
  expect(await useResult("a1", 0)).toBe(false);
  expect(formError.value).toBe("The job has expired.");
});

it("lists the newest jobs first, also those that only this tab knows", () => {
  const jobs = ["old", "new", "middle"].map((id, day) => ({
    ...JOB,
    id,
    status: "succeeded",
    created_at: `2026-01-0${[1, 3, 2][day]}T00:00:00Z`,
    finished_at: "2026-01-04T00:00:00Z",
    expires_at: "2026-01-05T00:00:00Z",
  }));
  for (const job of jobs) track(job as unknown as Job);
  historyIds.value = ["new", "middle"];
  addToHistory("old");
  expect(historyJobs.value.map(({ id }) => id)).toEqual(["new", "middle", "old"]);
  expect(longDuration(keptSeconds.value ?? 0)).toBe("24 hours");
});
