import { useId } from "preact/hooks";
import { FieldError, invalid } from "./field-error";

interface Props {
  field: string;
  label: string;
  /** Empty: the first option, which leaves the field to the service. */
  value: string;
  options: { value: string; label: string }[];
  /** Why the field cannot be set; empty if it can. */
  whyNot?: string;
  onChange: (value: string) => void;
}

export function SelectField({ field, label, value, options, whyNot = "", onChange }: Props) {
  const id = useId();
  return (
    <div class="field">
      <label for={id}>{label}</label>
      <select
        id={id}
        name={field}
        value={value}
        disabled={whyNot !== ""}
        {...invalid(field)}
        onChange={(event) => onChange(event.currentTarget.value)}
      >
        {options.map((option) => (
          <option key={option.value} value={option.value}>
            {option.label}
          </option>
        ))}
      </select>
      {whyNot && <p class="hint">{whyNot}</p>}
      <FieldError field={field} />
    </div>
  );
}
