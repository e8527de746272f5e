import { ApiError } from "../api/client";
import { t } from "../i18n";
import { newId } from "../lib/new-id";
import { takes } from "../lib/request";
import { useResultUrl } from "../lib/result-url";
import { forgetMap, mapJobs, previewMap } from "../state/control-maps";
import { type ControlRow, controls, formError, inputImage } from "../state/form";
import { isOver, viewOf } from "../state/jobs";
import { showError } from "../state/runs";
import { situation } from "../state/situation";
import { FieldError } from "./field-error";
import { ImageSlot } from "./image-slot";
import { Slider } from "./slider";

const MAX_CONTROLS = 4;

/** Control maps that the result follows. */
export function Controls() {
  const now = situation.value;
  if (!now || !takes(now, "controls")) return null;
  const types = now.card.controls ?? [];
  const rows = controls.value;
  return (
    <details class="settings" open={rows.length > 0}>
      <summary>{t().controls.title}</summary>
      <p class="hint">{t().controls.hint}</p>
      {rows.map((row, index) => (
        <Row key={row.key} row={row} index={index} types={types} />
      ))}
      <FieldError field="controls" />
      {rows.length < MAX_CONTROLS && (
        <button type="button" onClick={() => add(types[0])}>
          {t().controls.add}
        </button>
      )}
    </details>
  );
}

function add(type: string | undefined): void {
  if (!type) return;
  const row = { key: newId(), type, scale: 1, start: 0, end: 1, image: null };
  controls.value = [...controls.value, { ...row, preprocess: canMake(type) }];
}

/** Whether the service can make a map of this type from an image. */
function canMake(type: string): boolean {
  return (situation.value?.card.preprocessors ?? []).includes(type);
}

function change(key: string, changes: Partial<ControlRow>): void {
  if ("type" in changes || "image" in changes) forgetMap(key);
  controls.value = controls.value.map((row) => (row.key === key ? { ...row, ...changes } : row));
}

function Row({ row, index, types }: { row: ControlRow; index: number; types: string[] }) {
  const texts = t().controls;
  const field = `controls.${index}`;
  return (
    <fieldset class="row">
      <legend class="hidden">{texts.one(index + 1)}</legend>
      <div class="row-head">
        <select
          name={field}
          aria-label={texts.type}
          value={row.type}
          onChange={({ currentTarget: { value } }) => {
            const type = value;
            change(row.key, { type, preprocess: canMake(type) });
          }}
        >
          {types.map((type) => (
            <option key={type} value={type}>
              {texts.types[type] ? `${type} – ${texts.types[type]}` : type}
            </option>
          ))}
        </select>
        <button
          type="button"
          onClick={() => (controls.value = controls.value.filter(({ key }) => key !== row.key))}
        >
          {texts.remove}
        </button>
      </div>
      <div class="row-images">
        <ImageSlot
          image={row.image}
          label={texts.ownImage}
          placeholder={inputImage.value ? texts.inputImage : texts.ownImage}
          onChange={(image) => change(row.key, { image })}
          onError={(message) => (formError.value = message)}
        />
        <label class="check" title={texts.isMapHint}>
          <input
            type="checkbox"
            checked={!row.preprocess}
            disabled={!canMake(row.type)}
            onChange={(event) => change(row.key, { preprocess: !event.currentTarget.checked })}
          />
          {texts.isMap}
        </label>
      </div>
      {row.preprocess && <MapPreview row={row} />}
      <Slider
        field={`${field}.scale`}
        label={texts.scale}
        value={row.scale === 1 ? undefined : row.scale}
        fallback={1}
        min={0}
        max={2}
        step={0.05}
        onChange={(scale = 1) => change(row.key, { scale })}
      />
      <Span row={row} field={field} />
      <FieldError field={field} />
    </fieldset>
  );
}

/** The part of the steps that the control guides. */
function Span({ row, field }: { row: ControlRow; field: string }) {
  return (
    <div class="pair">
      <Slider
        field={`${field}.start`}
        label={t().controls.start}
        value={row.start === 0 ? undefined : row.start}
        fallback={0}
        min={0}
        max={1}
        step={0.05}
        onChange={(start = 0) => change(row.key, { start })}
      />
      <Slider
        field={`${field}.end`}
        label={t().controls.end}
        value={row.end === 1 ? undefined : row.end}
        fallback={1}
        min={0}
        max={1}
        step={0.05}
        onChange={(end = 1) => change(row.key, { end })}
      />
    </div>
  );
}

/** The map, made before the job is paid for. */
function MapPreview({ row }: { row: ControlRow }) {
  const jobId = mapJobs.value[row.key];
  const view = jobId ? viewOf(jobId).value : null;
  if (view?.job.images.length) return <MapImage jobId={view.job.id} type={row.type} />;
  const isBusy = view !== null && !isOver(view.job);
  const preview = () =>
    previewMap(row).catch((error: unknown) => {
      if (!(error instanceof ApiError)) throw error;
      showError(error);
    });
  return (
    <button
      type="button"
      disabled={isBusy || !(row.image ?? inputImage.value)}
      onClick={() => void preview()}
    >
      {isBusy ? t().controls.making : t().controls.preview}
    </button>
  );
}

function MapImage({ jobId, type }: { jobId: string; type: string }) {
  const url = useResultUrl(jobId, 0);
  return url ? <img class="map" src={url} alt={t().controls.map(type)} /> : null;
}
