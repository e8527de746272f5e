/** Fields of the request that the form shows from the OpenAPI document alone, because no component knows them. */

export type Kind = "boolean" | "number" | "integer" | "text" | "choice";

export interface SchemaField {
  name: string;
  kind: Kind;
  description: string;
  options: string[];
  minimum?: number;
  maximum?: number;
  fallback?: unknown;
}

interface Schema {
  $ref?: string;
  type?: string;
  anyOf?: Schema[];
  enum?: string[];
  minimum?: number;
  maximum?: number;
  exclusiveMaximum?: number;
  default?: unknown;
  description?: string;
  properties?: Record<string, Schema>;
}

export interface OpenApiDocument {
  components: { schemas: Record<string, Schema> };
}

/** Return the scalar fields of a schema, without those named in `known`. */
export function schemaFields(
  document: OpenApiDocument,
  name: string,
  known: ReadonlySet<string>,
): SchemaField[] {
  const { schemas } = document.components;
  const properties = Object.entries(schemas[name]?.properties ?? {});
  return properties.flatMap(([field, schema]) => {
    const value = resolved(schema, schemas);
    const kind = kindOf(value);
    if (known.has(field) || kind === null) return [];
    const { minimum, maximum = value.exclusiveMaximum, enum: options = [] } = value;
    const { description = "", default: fallback } = schema;
    return [{ name: field, kind, description, options, minimum, maximum, fallback }];
  });
}

/** Follow references, and leave out null. */
function resolved(schema: Schema, schemas: Record<string, Schema>): Schema {
  if (schema.$ref) return resolved(schemas[schema.$ref.split("/").at(-1) ?? ""] ?? {}, schemas);
  const options = (schema.anyOf ?? []).filter(({ type }) => type !== "null");
  return options.length === 1 && options[0] ? resolved(options[0], schemas) : schema;
}

function kindOf({ type, enum: options }: Schema): Kind | null {
  if (options) return "choice";
  if (type === "boolean" || type === "number" || type === "integer") return type;
  return type === "string" ? "text" : null;
}
