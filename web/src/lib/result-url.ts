import { useEffect, useState } from "preact/hooks";
import { BASE, fetchFromService } from "../api/client";
import { apiKey } from "../state/session";

export type ResultFormat = "png" | "webp";

function pathOf(jobId: string, index: number, format: ResultFormat): string {
  return `/jobs/${jobId}/images/${index}${format === "png" ? "" : `?format=${format}&quality=80`}`;
}

/**
 * Return a URL for a result image; null while it is loading. Without API keys it is the image's own, which the browser
 * caches. An `<img>` cannot send a key, so with one the image is fetched.
 */
export function useResultUrl(jobId: string, index: number, format: ResultFormat = "png"): string | null {
  const path = pathOf(jobId, index, format);
  const key = apiKey.value;
  const [fetched, setFetched] = useState<{ path: string; url: string } | null>(null);
  useEffect(() => {
    if (!key) return;
    const controller = new AbortController();
    let url = "";
    void fetchFromService(path, { signal: controller.signal })
      .then((response) => response.blob())
      .then((blob) => {
        url = URL.createObjectURL(blob);
        setFetched({ path, url });
      })
      // A missing image is shown by its alternative text.
      .catch(() => undefined);
    return () => {
      controller.abort();
      URL.revokeObjectURL(url);
    };
  }, [path, key]);
  if (!key) return BASE + path;
  return fetched?.path === path ? fetched.url : null;
}
