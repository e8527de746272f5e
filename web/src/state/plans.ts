import { type Axis, vary } from "../lib/strips";
import type { Plan } from "./actions";

/** Return the plan of a strip, or of a table with `rows`. */
export function planFor(columns: Axis, rows?: Axis): Plan & { cells: number } {
  return {
    axes: [columns.field, ...(rows ? [rows.field] : [])],
    columns: columns.values.length,
    cells: columns.values.length * (rows?.values.length ?? 1),
    requests: (base) => vary(base, columns, rows),
  };
}
