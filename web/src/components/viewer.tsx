import { useEffect, useState } from "preact/hooks";
import type { Job, JobImage } from "../api/generated/types.gen";
import { t } from "../i18n";
import { useResultUrl } from "../lib/result-url";
import { backdropOf } from "../lib/transparency";
import { inputImage } from "../state/form";
import { keptImage } from "../state/image-store";
import { Compare } from "./compare";

interface Props {
  job: Job;
  image: JobImage;
  /** Id of the input image in the browser's storage. */
  imageId: string | null;
}

/** A result, compared with its input if the browser has it; fitted to the page, or pixel by pixel. */
export function Viewer({ job, image, imageId }: Props) {
  const url = useResultUrl(job.id, image.index);
  const input = useInputUrl(imageId);
  const [isActualSize, setIsActualSize] = useState(false);
  const [isCompared, setIsCompared] = useState(true);
  const alt = t().result.alt(image.index + 1);
  // At least one pixel of the screen for each of the image; small images are enlarged to be seen.
  const size = isActualSize
    ? { width: `${image.width / devicePixelRatio}px` }
    : {
        aspectRatio: `${image.width} / ${image.height}`,
        // As wide as the page permits, but no higher than the limit.
        maxWidth: `calc(var(--stage-height) * ${image.width / image.height})`,
      };
  return (
    <div class="stage">
      <div class={`viewport ${isActualSize ? "is-actual" : ""}`} tabIndex={isActualSize ? 0 : undefined}>
        <div class="canvas" style={size} data-size={`${image.width}x${image.height}`}>
          {url && input && isCompared ? (
            <Compare before={input} after={url} alt={alt} request={job.request} />
          ) : (
            url && <img src={url} alt={alt} class={`result-image ${backdropOf(job.request)}`} />
          )}
        </div>
      </div>
      <div class="viewer-tools">
        {input && (
          <button type="button" aria-pressed={isCompared} onClick={() => setIsCompared(!isCompared)}>
            {t().result.compare}
          </button>
        )}
        <button type="button" aria-pressed={isActualSize} onClick={() => setIsActualSize(!isActualSize)}>
          {t().result.actual}
        </button>
        <span class="hint">
          {image.width} × {image.height}
        </span>
      </div>
    </div>
  );
}

/** The URL of the input image of a run; null while it is loading, or if the browser does not have it. */
function useInputUrl(imageId: string | null): string | null {
  const current = inputImage.value;
  const [kept, setKept] = useState<string | null>(null);
  const isCurrent = current?.id === imageId;
  useEffect(() => {
    if (!imageId || isCurrent) return;
    let url: string | null = null;
    let isGone = false;
    void keptImage(imageId).then((image) => {
      if (!image || isGone) return;
      url = URL.createObjectURL(image.blob);
      setKept(url);
    });
    return () => {
      isGone = true;
      setKept(null);
      if (url) URL.revokeObjectURL(url);
    };
  }, [imageId, isCurrent]);
  return isCurrent ? (current?.url ?? null) : kept;
}
