import { t } from "../i18n";
import { isOver, viewOf } from "../state/jobs";
import { cancelRun, type Run } from "../state/runs";
import { ProgressBar } from "./job-progress";

/** How far the jobs of a run are, while some have not ended. They are cancelled together. */
export function RunProgress({ run }: { run: Run }) {
  const shares = run.cells.map(({ jobId, error }) => {
    const view = jobId ? viewOf(jobId).value : null;
    if (error || view?.lost || (view && isOver(view.job))) return 1;
    return view?.job.progress.fraction ?? 0;
  });
  const done = shares.filter((share) => share === 1).length;
  if (done === shares.length) return null;
  return (
    <ProgressBar
      status="running"
      text={t().run.done(done, shares.length)}
      share={shares.reduce((sum, share) => sum + share, 0) / shares.length}
      cancelLabel={t().run.cancelAll}
      onCancel={() => void cancelRun(run)}
    />
  );
}
