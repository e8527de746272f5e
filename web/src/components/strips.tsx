import { useId } from "preact/hooks";
import { t } from "../i18n";
import { takes } from "../lib/request";
import { AXIS_FIELDS, type AxisField, MAX_CELLS, parseValues, STRENGTHS, usualValues } from "../lib/strips";
import type { Plan } from "../state/actions";
import { planFor } from "../state/plans";
import { saved } from "../state/saved";
import { situation } from "../state/situation";
import { start, whyNot } from "../state/submitting";

interface TypedAxis {
  field: AxisField | "";
  text: string;
}

const columns = saved<TypedAxis>("columns", { field: "strength", text: STRENGTHS.join(", ") });
const rows = saved<TypedAxis>("rows", { field: "", text: "" });
/** Several images of one request: a strip over a field, or a table over two. */
export function Strips() {
  const now = situation.value;
  if (!now) return null;
  const fields = AXIS_FIELDS.filter((field) => takes(now, field));
  const plan = tablePlan(fields);
  const cells = plan?.cells ?? 0;
  return (
    <details class="settings">
      <summary>{t().strips.table}</summary>
      <AxisEditor axis={columns} label={t().strips.columns} fields={fields} />
      <AxisEditor axis={rows} label={t().strips.rows} fields={fields} isOptional />
      <button
        type="button"
        disabled={whyNot() !== "" || cells === 0 || cells > MAX_CELLS}
        onClick={() => plan && void start(plan)}
      >
        {t().strips.run(cells)}
      </button>
      {cells > MAX_CELLS && <p class="error">{t().strips.tooMany(MAX_CELLS)}</p>}
    </details>
  );
}

/** The table as it is typed; null while it has no columns. */
function tablePlan(fields: AxisField[]): (Plan & { cells: number }) | null {
  const [x, y] = [columns.value, rows.value].map(({ field, text }) =>
    field && fields.includes(field) ? { field, values: parseValues(text, field) } : null,
  );
  if (!x || x.values.length === 0) return null;
  const hasRows = y && y.field !== x.field && y.values.length > 0;
  return planFor(x, hasRows ? y : undefined);
}

interface EditorProps {
  axis: typeof columns;
  label: string;
  fields: AxisField[];
  isOptional?: boolean;
}

function AxisEditor({ axis, label, fields, isOptional = false }: EditorProps) {
  const id = useId();
  const { field, text } = axis.value;
  const choose = (name: AxisField | "") => {
    const card = situation.value?.card;
    axis.value = { field: name, text: name && card ? usualValues(name, card).join(", ") : "" };
  };
  return (
    <div class="axis">
      <div class="field">
        <label for={id}>{label}</label>
        <select
          id={id}
          value={field}
          onChange={(event) => choose(event.currentTarget.value as AxisField | "")}
        >
          {isOptional && <option value="">{t().strips.none}</option>}
          {fields.map((name) => (
            <option key={name} value={name}>
              {t().strips.fields[name]}
            </option>
          ))}
        </select>
      </div>
      <div class="field">
        <label for={`${id}-values`}>{t().strips.values}</label>
        <input
          id={`${id}-values`}
          type="text"
          value={text}
          disabled={!field}
          onInput={(event) => (axis.value = { field, text: event.currentTarget.value })}
        />
      </div>
    </div>
  );
}
