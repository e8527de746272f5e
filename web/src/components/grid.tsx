import type { Job } from "../api/generated/types.gen";
import { t } from "../i18n";
import { useResultUrl } from "../lib/result-url";
import { backdropOf } from "../lib/transparency";
import { viewOf } from "../state/jobs";
import { type Run, shownCell } from "../state/runs";
import type { RunImage } from "./result";

/** The images of a run, to choose one. */
export function Grid({ run, images }: { run: Run; images: RunImage[] }) {
  return (
    <ul class="grid" style={{ "--columns": Math.min(run.cells.length > 1 ? run.columns : images.length, 8) }}>
      {images.map((image, at) => (
        <li key={`${image.cell.jobId}-${at}`}>
          <button
            type="button"
            class="tile"
            aria-pressed={shownCell.value === at}
            onClick={() => (shownCell.value = at)}
          >
            <Tile image={image} position={at + 1} />
          </button>
        </li>
      ))}
    </ul>
  );
}

function Tile({ image: { cell, index }, position }: { image: RunImage; position: number }) {
  const view = cell.jobId ? viewOf(cell.jobId).value : null;
  const result = view?.job.images[index];
  const caption = cell.label || (result && t().result.seed(String(result.seed))) || String(position);
  const alt = `${t().result.alt(position)}: ${caption}`;
  return (
    <>
      {result && view ? (
        <Thumbnail job={view.job} index={index} alt={alt} />
      ) : (
        <span class={`tile-state ${cell.error || view?.job.error ? "is-failed" : ""}`} title={cell.error}>
          {view?.preview && <img src={view.preview} alt="" />}
          {stateText(cell.error, view?.job.status, view?.job.progress.fraction)}
        </span>
      )}
      <span class="tile-caption">{caption}</span>
    </>
  );
}

function stateText(error: string, status: string | undefined, fraction = 0): string {
  if (status === "cancelled" || error === t().run.cancelled) return t().run.cancelled;
  if (error || status === "failed") return t().run.failed;
  return status === "running" ? `${Math.round(fraction * 100)} %` : "…";
}

function Thumbnail({ job, index, alt }: { job: Job; index: number; alt: string }) {
  const url = useResultUrl(job.id, index, "webp");
  if (!url) return <span class="tile-state" />;
  return <img src={url} alt={alt} class={backdropOf(job.request)} loading="lazy" />;
}
