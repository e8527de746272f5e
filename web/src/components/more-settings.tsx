import { signal } from "@preact/signals";
import { useId } from "preact/hooks";
import { ApiError, fetchFromService } from "../api/client";
import type { Img2ImgRequest } from "../api/generated/types.gen";
import { t } from "../i18n";
import { takes } from "../lib/request";
import { type SchemaField, schemaFields } from "../lib/schema-fields";
import { set, type Values, values } from "../state/form";
import { situation } from "../state/situation";
import { FieldError, invalid } from "./field-error";
import { FreeU } from "./freeu";
import { SelectField } from "./select-field";

// Fields with components of their own, and those that need something outside of the page.
const KNOWN = new Set(
  (
    "image prompt negative_prompt instruction mask mask_blur mask_padding outpaint controls image_prompts loras strength " +
    "guidance_scale image_guidance_scale num_inference_steps num_images scheduler seed width height resize upscale model " +
    "webhook speed background freeu images reuse"
  ).split(" "),
);

const fields = signal<SchemaField[] | null>(null);

/** The other fields of a request, as the service describes them. Loaded when they are looked at. */
export function MoreSettings() {
  const now = situation.value;
  if (!now) return null;
  const shown = (fields.value ?? []).filter(({ name }) => takes(now, name as keyof Img2ImgRequest));
  return (
    <details class="settings" onToggle={(event) => event.currentTarget.open && void load()}>
      <summary>{t().form.more}</summary>
      <div class="settings-grid more-grid">
        {shown.map((field) => (
          <Field key={field.name} field={field} />
        ))}
        {takes(now, "freeu") && <FreeU />}
        {takes(now, "refine") && <DetailPass />}
        <Reuse />
      </div>
    </details>
  );
}

async function load(): Promise<void> {
  if (fields.value) return;
  try {
    const document = await (await fetchFromService("/openapi.json")).json();
    fields.value = schemaFields(document, "Img2ImgRequest", KNOWN);
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
  }
}

function Field({ field }: { field: SchemaField }) {
  const { name, kind, description, options, fallback } = field;
  const change = (next: unknown) => set({ [name]: next } as Partial<Values>);
  if (kind === "choice") {
    const first = { value: "", label: t().form.modelDefault(String(fallback ?? "–")) };
    return (
      <div title={description}>
        <SelectField
          field={name}
          label={labelOf(name)}
          value={String(currentValue(name) ?? "")}
          options={[first, ...options.map((option) => ({ value: option, label: option }))]}
          onChange={(next) => change(next || undefined)}
        />
      </div>
    );
  }
  return (
    <div class="field" title={description}>
      {kind === "boolean" ? (
        <Checkbox name={name} onChange={change} />
      ) : (
        <Input field={field} onChange={change} />
      )}
      <FieldError field={name} />
    </div>
  );
}

/** Words for the parts that the detail pass generates again; the other fields of an entry keep their values. */
function DetailPass() {
  const id = useId();
  const [first, ...others] = values.value.refine ?? [];
  const change = (detect: string) =>
    set({ refine: detect === "" ? undefined : [{ ...first, detect }, ...others] });
  return (
    <div class="field" title={t().form.detailHint}>
      <label for={id}>{t().form.detail}</label>
      <input
        id={id}
        type="text"
        name="refine"
        maxLength={200}
        placeholder={t().form.detailExample}
        value={first?.detect ?? ""}
        {...invalid("refine")}
        onChange={(event) => change(event.currentTarget.value.trim())}
      />
      <FieldError field="refine" />
    </div>
  );
}

/** Needs a seed: without one, each request gets another image. */
function Reuse() {
  const now = situation.value;
  return (
    <div class="field" title={t().form.reuseHint}>
      <Checkbox name="reuse" isDisabled={!now || !takes(now, "reuse")} onChange={(reuse) => set({ reuse })} />
      <FieldError field="reuse" />
    </div>
  );
}

interface CheckboxProps {
  name: string;
  isDisabled?: boolean;
  onChange: (value: boolean | undefined) => void;
}

function Checkbox({ name, isDisabled = false, onChange }: CheckboxProps) {
  const id = useId();
  return (
    <div class="check">
      <input
        id={id}
        type="checkbox"
        name={name}
        checked={currentValue(name) === true && !isDisabled}
        disabled={isDisabled}
        onChange={(event) => onChange(event.currentTarget.checked || undefined)}
      />
      <label for={id}>{labelOf(name)}</label>
    </div>
  );
}

function Input({ field, onChange }: { field: SchemaField; onChange: (value: unknown) => void }) {
  const { name, kind, minimum, maximum, fallback } = field;
  const id = useId();
  const read = (text: string) => (text === "" ? undefined : kind === "text" ? text : Number(text));
  return (
    <>
      <label for={id}>{labelOf(name)}</label>
      <input
        id={id}
        type={(kind === "text" ? "text" : "number") as "number"}
        name={name}
        min={minimum}
        max={maximum}
        step={kind === "integer" ? 1 : "any"}
        placeholder={fallback == null ? t().form.automatic : String(fallback)}
        value={(currentValue(name) as string | number | undefined) ?? ""}
        {...invalid(name)}
        onChange={(event) => onChange(read(event.currentTarget.value))}
      />
    </>
  );
}

function currentValue(name: string): unknown {
  return values.value[name as keyof Values];
}

function labelOf(name: string): string {
  return t().fields[name] ?? name.replaceAll("_", " ");
}
