import { useEffect, useState } from "preact/hooks";
import { ApiError } from "../api/client";
import type { Job } from "../api/generated/types.gen";
import { t } from "../i18n";
import { duration } from "../lib/duration";
import { cancel, isOver, type JobView } from "../state/jobs";
import { showError } from "../state/runs";

/** Where a job is that has not ended: its place in the queue with an ETA, or its steps. */
export function JobProgress({ view: { job, lost } }: { view: JobView }) {
  const { id, status, queue_position, progress } = job;
  const left = useTimeLeft(job);
  const texts = t().run;
  if (isOver(job) || lost) return null;
  const parts: string[] = [];
  if (status === "queued") parts.push(queue_position ? texts.position(queue_position) : texts.next);
  else parts.push(texts.step(progress.step, progress.steps));
  if (left !== null) parts.push(texts.eta(duration(left)));
  const stop = () =>
    cancel(id).catch((error: unknown) => {
      if (error instanceof ApiError) showError(error);
    });
  return (
    <ProgressBar
      status={status}
      text={parts.join(" · ")}
      share={status === "queued" ? undefined : progress.fraction}
      cancelLabel={texts.cancel}
      onCancel={() => void stop()}
    />
  );
}

interface BarProps {
  status: string;
  text: string;
  /** Undefined while it is unknown. */
  share: number | undefined;
  cancelLabel: string;
  onCancel: () => void;
}

export function ProgressBar({ status, text, share, cancelLabel, onCancel }: BarProps) {
  return (
    <div class="progress" data-status={status}>
      <div class="progress-text">
        <span role="status">{text}</span>
        <button type="button" onClick={onCancel}>
          {cancelLabel}
        </button>
      </div>
      <progress max={1} value={share} aria-label={text} />
    </div>
  );
}

/** Seconds that are left: the service's estimate while queued, then from the speed of the steps; null if unknown. */
function useTimeLeft({ status, eta_s, progress }: Job): number | null {
  const [, tick] = useState(0);
  const [since, setSince] = useState<{ at: number; fraction: number } | null>(null);
  const [estimate, setEstimate] = useState<{ at: number; seconds: number } | null>(null);
  useEffect(() => {
    if (eta_s != null) setEstimate({ at: Date.now(), seconds: eta_s });
  }, [eta_s]);
  useEffect(() => {
    if (status === "running") setSince((known) => known ?? { at: Date.now(), fraction: progress.fraction });
  }, [status]);
  useEffect(() => {
    const timer = setInterval(() => tick((count) => count + 1), 1000);
    return () => clearInterval(timer);
  }, []);
  const done = since && progress.fraction - since.fraction;
  if (since && done && done > 0) return ((Date.now() - since.at) / 1000 / done) * (1 - progress.fraction);
  if (!estimate) return null;
  return Math.max(0, estimate.seconds - (Date.now() - estimate.at) / 1000);
}
