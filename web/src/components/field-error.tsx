import { useEffect, useRef } from "preact/hooks";
import { fieldErrors } from "../state/form";

/** The errors of the service for a field, in its own words. */
export function FieldError({ field }: { field: string }) {
  const ref = useRef<HTMLParagraphElement>(null);
  const errors = errorsOf(field);
  const isRejected = errors.length > 0;
  useEffect(() => {
    const section = ref.current?.closest("details");
    if (section) section.open = true;
    ref.current?.scrollIntoView({ block: "nearest" });
  }, [isRejected]);
  if (!isRejected) return null;
  return (
    <p class="error" ref={ref} id={errorId(field)} data-field={field}>
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
