// Node wants the extension in an import.
export default {
  input: "openapi.json",
  output: { path: "img2img-client", importFileExtension: ".js" },
};
