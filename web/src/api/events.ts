import { createParser } from "eventsource-parser";
import { ApiError, fetchFromService } from "./client";
import type {
  Batch,
  BatchProgressEvent,
  GoneEvent,
  Job,
  PreviewEvent,
  Problem,
  ProgressEvent,
  QueuedEvent,
} from "./generated/types.gen";

export type JobStreamEvent =
  | { name: "queued"; data: QueuedEvent }
  | { name: "progress"; data: ProgressEvent }
  | { name: "preview"; data: PreviewEvent }
  | { name: "succeeded" | "failed" | "cancelled"; data: Job }
  | { name: "gone"; data: GoneEvent }
  | { name: "error"; data: Problem };

export type BatchStreamEvent =
  | { name: "progress"; data: BatchProgressEvent }
  | { name: "job"; data: Job }
  | { name: "ended"; data: Batch }
  | { name: "gone"; data: GoneEvent }
  | { name: "error"; data: Problem };

const LAST = new Set(["succeeded", "failed", "cancelled", "ended", "gone", "error"]);
const RETRY_MS = 2000;

/** Follow a job until it has ended, with previews. Throws as `follow` does. */
export function followJob(
  id: string,
  onEvent: (event: JobStreamEvent) => void,
  signal: AbortSignal,
): Promise<void> {
  return follow(`/jobs/${id}/events?preview=true`, onEvent, signal);
}

/** Follow a batch until it has ended: each job that ends is an event. Throws as `follow` does. */
export function followBatch(
  id: string,
  onEvent: (event: BatchStreamEvent) => void,
  signal: AbortSignal,
): Promise<void> {
  return follow(`/batches/${id}/events`, onEvent, signal);
}

/**
 * Read a stream until its last event, and reconnect when the connection is lost. By `fetch`, because an EventSource
 * cannot send an API key. Throws ApiError if the service refuses the stream, and an AbortError when aborted.
 */
async function follow<E>(path: string, onEvent: (event: E) => void, signal: AbortSignal): Promise<void> {
  let lastId: string | undefined;
  let isOver = false;
  const parser = createParser({
    onEvent: ({ event, id, data }) => {
      lastId = id ?? lastId;
      isOver ||= LAST.has(event ?? "");
      onEvent({ name: event, data: JSON.parse(data) } as E);
    },
  });
  while (!isOver) {
    try {
      const headers: Record<string, string> = lastId === undefined ? {} : { "Last-Event-ID": lastId };
      const response = await fetchFromService(path, { headers, signal });
      // The client has received the last event.
      if (response.status === 204 || response.body === null) return;
      await readText(response.body, (text) => parser.feed(text));
    } catch (error) {
      if (signal.aborted) throw error;
      if (error instanceof ApiError && !error.isOutage) throw error;
    }
    parser.reset();
    if (!isOver) await pause(RETRY_MS, signal);
  }
}

async function readText(body: ReadableStream<Uint8Array>, onText: (text: string) => void): Promise<void> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    onText(decoder.decode(value, { stream: true }));
  }
}

/** Wait. Throws an AbortError when aborted. */
export function pause(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
