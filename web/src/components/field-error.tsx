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
  const isRejected = errorsOf(field).length > 0;
  return { "aria-invalid": isRejected, "aria-describedby": isRejected ? errorId(field) : undefined };
}

function errorsOf(field: string) {
  return fieldErrors.value.filter((error) => error.field === field || error.field.startsWith(`${field}.`));
}
