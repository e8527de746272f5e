// A plugin of Swagger UI.
//
// - Fields of a form begin empty unless the document gives an example or a default. Swagger UI invents values, such as
//   1 for a width and "string" for a model, and sends those of fields that were not touched.
// - The body of one media type is not kept for another, where it would be invalid.
// - Forms come before JSON, because a person has the image as a file.
const FORM = "multipart/form-data";

function hasValue(schema) {
  return ["default", "example", "examples"].some((name) => schema?.has?.(name) || schema?.[name] !== undefined);
}

// With a text as the value of a list, Swagger UI renders for ever.
function emptyValue(schema) {
  return (schema?.get?.("type") ?? schema?.type) === "array" ? [] : "";
}

function formFirst(document) {
  for (const operations of Object.values(document.paths ?? {})) {
    for (const { requestBody } of Object.values(operations)) {
      const { [FORM]: form, ...others } = requestBody?.content ?? {};
      if (form) requestBody.content = { [FORM]: form, ...others };
    }
  }
  return document;
}

window.TryItOut = () => ({
  // Not as `fn` of the plugin: Swagger UI replaces its own functions after loading, if the document is OpenAPI 3.1.
  afterLoad() {
    const original = this.fn.getSampleSchema;
    // The rows of a form are the only callers without a media type.
    this.fn.getSampleSchema = (schema, mediaType, ...rest) =>
      mediaType === false && !hasValue(schema) ? emptyValue(schema) : original(schema, mediaType, ...rest);
  },
  statePlugins: {
    oas3: {
      wrapActions: {
        setRequestContentType: (original, system) => (change) => {
          const action = original(change);
          system.oas3Actions.setRequestBodyValue({ value: undefined, pathMethod: change.pathMethod });
          return action;
        },
      },
    },
    spec: {
      wrapActions: {
        updateJsonSpec: (original) => (document) => original(formFirst(document)),
      },
    },
  },
});
