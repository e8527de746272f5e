import { t } from "../i18n";
import { card } from "../state/models";

/** The name under which the built-in model is served. */
const DEMO = "demo";
const OWN_MODEL = "img2img serve --model FILE.safetensors";

/** What the model is for; with the built-in one, how to use another. */
export function ModelNote() {
  const model = card.value;
  if (!model?.description && model?.name !== DEMO) return null;
  const texts = t().model;
  return (
    <p class="model-note">
      {model.name === DEMO ? texts.demo : model.description}
      {model.name === DEMO && (
        <>
          {" "}
          {texts.own} <code>{OWN_MODEL}</code>
        </>
      )}
    </p>
  );
}
