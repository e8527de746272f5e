import { apiKey, isReachable, keyNeeded, wasRefused } from "../state/session";
import { client } from "./generated/client.gen";
import type { FieldProblem, Problem, UploadedImage } from "./generated/types.gen";

/** The folder of the page, which is the root of the API also behind a proxy that serves it below a path. */
export const BASE = new URL(".", document.baseURI).href.replace(/\/$/, "");

/** An error of the service, with its own sentence and the fields it names. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly fields: FieldProblem[] = [],
    readonly code = "",
  ) {
    super(message);
  }

  /** Whether the service was not reached, or cannot answer at the moment. */
  get isOutage(): boolean {
    return this.status === 0 || this.status === 502 || this.status === 503 || this.status === 504;
  }
}

export async function errorOf(response: Response | undefined, body: unknown): Promise<ApiError> {
  if (response === undefined) return new ApiError(0, "");
  const problem = (typeof body === "object" && body !== null ? body : {}) as Partial<Problem>;
  const message = problem.detail ?? `${response.status} ${response.statusText}`;
  return new ApiError(response.status, message, problem.errors ?? [], problem.code);
}

client.setConfig({ baseUrl: BASE, auth: () => apiKey.value ?? undefined, throwOnError: true });
client.interceptors.response.use((response) => {
  noteStatus(response.status);
  return response;
});
client.interceptors.error.use(async (error, response) => {
  if (error instanceof DOMException && error.name === "AbortError") return error;
  if (!response) isReachable.value = false;
  return errorOf(response, error);
});

/** Record whether the service can be reached and accepts the key. */
export function noteStatus(status: number): void {
  isReachable.value = ![502, 504].includes(status);
  if (status === 401) {
    wasRefused.value = true;
    keyNeeded.value = true;
  }
}

/** Headers of a request that the generated client does not make. */
export function authorization(): Record<string, string> {
  return apiKey.value ? { Authorization: `Bearer ${apiKey.value}` } : {};
}

/** Fetch from the service. Throws ApiError for every status that is not a success. */
export async function fetchFromService(path: string, init: RequestInit = {}): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(`${BASE}${path}`, { ...init, headers: { ...authorization(), ...init.headers } });
  } catch (error) {
    if (init.signal?.aborted) throw error;
    isReachable.value = false;
    throw new ApiError(0, "");
  }
  noteStatus(response.status);
  if (response.ok) return response;
  throw await errorOf(response, await response.json().catch(() => null));
}

/** Store an image with POST /images, as a form: base64 in JSON would be a third larger. */
export async function uploadImage(image: Blob, signal?: AbortSignal): Promise<UploadedImage> {
  const body = new FormData();
  body.append("image", image, "image");
  return (await fetchFromService("/images", { method: "POST", body, signal })).json();
}
