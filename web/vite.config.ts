import preact from "@preact/preset-vite";
import { defineConfig } from "vitest/config";

// Where the API server has the built files; `make web` writes them.
const OUTPUT = "../app/playground/static";
// The service that `npm run dev` uses.
const SERVICE = process.env.IMG2IMG_URL ?? "http://127.0.0.1:8000";
const API = ["/img2img", "/images", "/jobs", "/models", "/control-maps", "/readyz", "/openapi.json"];

export default defineConfig({
  // Relative, so that a proxy can serve the service below a path.
  base: "./",
  plugins: [preact()],
  build: {
    outDir: OUTPUT,
    emptyOutDir: true,
    // The content security policy has no data: URIs in scripts and styles.
    assetsInlineLimit: 0,
    modulePreload: false,
    target: "es2022",
  },
  server: {
    proxy: Object.fromEntries(API.map((path) => [path, SERVICE])),
  },
  test: {
    environment: "happy-dom",
  },
});
