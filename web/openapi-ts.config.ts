import { readFileSync } from "node:fs";

const document = JSON.parse(readFileSync("../openapi.json", "utf-8"), (_key, value) => {
  // The generator takes `items` beside `prefixItems` for one more member of the tuple.
  if (value?.prefixItems && value.items) delete value.items;
  return value;
});

export default {
  input: document,
  output: "src/api/generated",
  plugins: ["@hey-api/client-fetch", "@hey-api/typescript", "@hey-api/sdk"],
};
