import { useId } from "preact/hooks";
import { FieldError, invalid } from "./field-error";

interface Props {
  field: string;
  label: string;
  hint: string;
  value: string;
  rows: number;
  onChange: (text: string) => void;
}

/** Text of several lines that grows with its content. */
export function TextField({ field, label, hint, value, rows, onChange }: Props) {
  const id = useId();
  return (
    <div class="field">
      <label for={id}>{label}</label>
      <textarea
        id={id}
        name={field}
        rows={rows}
        placeholder={hint}
        value={value}
        {...invalid(field)}
        onInput={(event) => onChange(event.currentTarget.value)}
      />
      <FieldError field={field} />
    </div>
  );
}
