import { useEffect, useState } from "preact/hooks";
import type { Job } from "../api/generated/types.gen";
import { t } from "../i18n";
import { duration } from "../lib/duration";

interface Props {
  job: Job;
  /** Whether the job is one of several that are cancelled together. */
  isGroup: boolean;
  onCancel: () => void;
}

/** Where a job is: its place in the queue with an ETA, or its steps. */
export function JobProgress({ job, isGroup, onCancel }: Props) {
  const { status, queue_position, progress } = job;
  const left = useTimeLeft(job);
  const texts = t().run;
  const parts: string[] = [];
  if (status === "queued") parts.push(queue_position ? texts.position(queue_position) : texts.next);
  else parts.push(texts.step(progress.step, progress.steps));
  if (left !== null) parts.push(texts.eta(duration(left)));
  return (
    <div class="progress" data-status={status}>
      <div class="progress-text">
        <span role="status">{parts.join(" · ")}</span>
        <button type="button" onClick={onCancel}>
          {isGroup ? texts.cancelAll : texts.cancel}
        </button>
      </div>
      <progress max={1} value={status === "queued" ? undefined : progress.fraction} aria-label={parts[0]} />
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
