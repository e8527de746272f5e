import type { Img2ImgRequest, Job, JobImage } from "../api/generated/types.gen";
import { t } from "../i18n";
import { canUpscale } from "../lib/capability";
import { duration } from "../lib/duration";
import { fileName } from "../lib/file-name";
import { useResultUrl } from "../lib/result-url";
import { isMakingMore, moreLikeThis, restoreJob, upscaleResult, useResult } from "../state/actions";
import { set } from "../state/form";
import { card } from "../state/models";
import { CopyAs } from "./copy-as";

interface Props {
  job: Job;
  image: JobImage;
  /** The request that was sent; null if another client sent it. */
  request: Img2ImgRequest | null;
  imageId: string | null;
}

/** What can be done with a finished image. */
export function ResultActions({ job, image, request, imageId }: Props) {
  const url = useResultUrl(job.id, image.index);
  const texts = t().result;
  const { run } = job.timings;
  const isGenerated = job.request.task !== "control_map" && job.request.task !== "mask";
  return (
    <>
      <div class="actions">
        <a class="button" href={url ?? undefined} download={fileName(job, image)}>
          {texts.download}
        </a>
        <button type="button" onClick={() => void useResult(job.id, image.index)}>
          {texts.useAsInput}
        </button>
        {card.value && canUpscale(card.value) && (
          <button
            type="button"
            title={texts.upscaleHint}
            onClick={() => void upscaleResult(job.id, image.index)}
          >
            {texts.upscale}
          </button>
        )}
        {isGenerated && (
          <>
            <button
              type="button"
              title={texts.moreHint}
              disabled={isMakingMore.value}
              onClick={() => void moreLikeThis(job, image.index)}
            >
              {texts.moreLikeThis}
            </button>
            <button type="button" onClick={() => void restoreJob(job, imageId)}>
              {texts.restore}
            </button>
            <button type="button" title={texts.lockSeed} onClick={() => set({ seed: image.seed })}>
              {texts.seed(String(image.seed))}
            </button>
          </>
        )}
        {run !== undefined && <span class="hint">{t().run.took(duration(run))}</span>}
      </div>
      {request && isGenerated && <CopyAs request={request} seed={seedOf(job)} />}
    </>
  );
}

/** The seed of the first image of the job, which is that of the request. */
function seedOf({ images }: Job): number {
  return images[0]?.seed ?? 0;
}
