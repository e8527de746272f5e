import { render } from "preact";
import { App } from "./app";
import { start } from "./state/start";
import "./styles/tokens.css";
import "./styles/base.css";
import "./styles/layout.css";
import "./styles/form.css";
import "./styles/input.css";
import "./styles/canvas.css";
import "./styles/result.css";
import "./styles/history.css";

const root = document.getElementById("app");
if (root) render(<App />, root);
void start();
