import { fieldErrors } from "../state/form";

/** The errors of the service for a field, in its own words. */
export function FieldError({ field }: { field: string }) {
  const errors = errorsOf(field);
  if (errors.length === 0) return null;
  return (
    <p class="error" id={errorId(field)} data-field={field}>
      {errors.map(({ message }) => message).join("; ")}
    </p>
  );
}

export function errorId(field: string): string {
  return `error-${field.replaceAll(".", "-")}`;
}

/** Attributes of the control of a field that was rejected. */
export function invalid(field: string) {
  return errorsOf(field).length > 0 ? { "aria-invalid": true, "aria-describedby": errorId(field) } : {};
}

function errorsOf(field: string) {
  return fieldErrors.value.filter((error) => error.field === field || error.field.startsWith(`${field}.`));
}
