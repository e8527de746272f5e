import { useState } from "preact/hooks";
import type { Job } from "../api/generated/types.gen";
import { t } from "../i18n";
import { placement } from "../lib/placement";
import { backdropOf } from "../lib/transparency";

interface Props {
  before: string;
  after: string;
  alt: string;
  request: Job["request"];
}

/**
 * Two images on each other, with a slider between them: a range input over the whole image, so that it works by mouse,
 * touch and keyboard.
 */
export function Compare({ before, after, alt, request }: Props) {
  const [share, setShare] = useState(50);
  const { fit, ...box } = placement(request);
  return (
    <div class="compare" style={{ "--split": `${share}%` }}>
      <img src={after} alt={alt} class={`result-image ${backdropOf(request)}`} draggable={false} />
      <div class="compare-before" aria-hidden="true">
        <img src={before} alt="" style={{ objectFit: fit, ...box }} draggable={false} />
      </div>
      <span class="compare-label is-before" aria-hidden="true">
        {t().result.before}
      </span>
      <span class="compare-label is-after" aria-hidden="true">
        {t().result.after}
      </span>
      <span class="compare-line" aria-hidden="true" />
      <input
        type="range"
        min={0}
        max={100}
        step={0.5}
        value={share}
        aria-label={t().result.compareSlider}
        onInput={(event) => setShare(event.currentTarget.valueAsNumber)}
      />
    </div>
  );
}
