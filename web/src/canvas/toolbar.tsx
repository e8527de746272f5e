import { useSignal } from "@preact/signals";
import { FieldError, invalid } from "../components/field-error";
import { Slider } from "../components/slider";
import { t } from "../i18n";
import { clearWordsError, findMask, isFinding, WORDS } from "../state/find-mask";
import { inputError, mask, set, values } from "../state/form";
import type { StoredImage } from "../state/images";
import { card } from "../state/models";
import { margins, SIDES, setMargin } from "./frame";
import { maskFromFile } from "./operations";
import {
  add,
  brushSize,
  clear,
  isAlpha,
  operations,
  redo,
  type Tool,
  tool,
  undo,
  undone,
  useTransparency,
  view,
  zoom,
} from "./state";

const TOOLS: readonly Tool[] = ["move", "brush", "eraser", "outpaint"];
const ZOOM = 1.5;

/** The tools of the canvas, and the options of the mask. */
export function Toolbar({ image }: { image: StoredImage }) {
  const texts = t().canvas;
  const isPainting = tool.value === "brush" || tool.value === "eraser";
  return (
    <div class="canvas-tools">
      <div class="segmented" role="radiogroup" aria-label={texts.tool}>
        {TOOLS.map((name) => (
          <label key={name} class={tool.value === name ? "is-chosen" : ""} title={texts.toolHints[name]}>
            <input
              type="radio"
              name="canvas-tool"
              value={name}
              checked={tool.value === name}
              onChange={() => (tool.value = name)}
            />
            {texts.tools[name]}
          </label>
        ))}
      </div>
      <ZoomButtons />
      {isPainting && <BrushOptions image={image} />}
      {isPainting && (card.value?.masks ?? []).includes("text") && <MaskWords image={image} />}
      {tool.value === "outpaint" && <MarginFields />}
      {mask.value !== null && <MaskOptions />}
      <FieldError field="mask" />
      <FieldError field="outpaint" />
    </div>
  );
}

function ZoomButtons() {
  const texts = t().canvas;
  const { scale } = view.value;
  return (
    <div class="tool-row">
      <button type="button" onClick={() => zoom(1 / ZOOM)} disabled={scale === 1} aria-label={texts.zoomOut}>
        −
      </button>
      <output class="hint">{Math.round(scale * 100)} %</output>
      <button type="button" onClick={() => zoom(ZOOM)} aria-label={texts.zoomIn}>
        +
      </button>
      <span class="spacer" />
      <button type="button" onClick={undo} disabled={operations.value.length === 0}>
        {texts.undo}
      </button>
      <button type="button" onClick={redo} disabled={undone.value.length === 0}>
        {texts.redo}
      </button>
      <button type="button" onClick={clear} disabled={mask.value === null}>
        {texts.clear}
      </button>
    </div>
  );
}

function BrushOptions({ image }: { image: StoredImage }) {
  const texts = t().canvas;
  const load = async (event: Event & { currentTarget: HTMLInputElement }) => {
    const file = event.currentTarget.files?.[0];
    event.currentTarget.value = "";
    if (!file) return;
    try {
      add({ kind: "load", image: await maskFromFile(file) });
    } catch {
      inputError.value = t().input.unreadable(file.name);
    }
  };
  return (
    <>
      <Slider
        field="brush"
        label={texts.size}
        value={undefined}
        fallback={brushSize.value}
        min={1}
        max={Math.max(8, Math.round(Math.max(image.width, image.height) / 2))}
        step={1}
        onChange={(size = brushSize.value) => {
          brushSize.value = size;
        }}
      />
      <div class="tool-row">
        <button type="button" onClick={() => add({ kind: "invert" })}>
          {texts.invert}
        </button>
        <button type="button" aria-pressed={isAlpha.value} onClick={useTransparency} title={texts.alphaHint}>
          {texts.alpha}
        </button>
        <label class="button file-button">
          {texts.load}
          <input type="file" accept="image/*" onChange={(event) => void load(event)} />
        </label>
      </div>
    </>
  );
}

/** Finds the mask by words, for models that can. */
function MaskWords({ image }: { image: StoredImage }) {
  const texts = t().canvas;
  const words = useSignal("");
  const find = () => void findMask(image, words.value);
  return (
    <div class="field">
      <label for="mask-text">{texts.words}</label>
      <div class="joined">
        <input
          id="mask-text"
          type="text"
          name="mask.text"
          list="mask-words"
          maxLength={200}
          placeholder={texts.wordsHint}
          value={words.value}
          onInput={(event) => {
            words.value = event.currentTarget.value;
            clearWordsError();
          }}
          {...invalid(WORDS)}
          onKeyDown={(event) => {
            if (event.key !== "Enter") return;
            event.preventDefault();
            find();
          }}
        />
        <datalist id="mask-words">
          {(card.value?.mask_words ?? []).map((word) => (
            <option key={word} value={word} />
          ))}
        </datalist>
        <button type="button" onClick={find} disabled={isFinding.value || words.value.trim() === ""}>
          {isFinding.value ? texts.finding : texts.find}
        </button>
      </div>
      <FieldError field={WORDS} />
    </div>
  );
}

const DEFAULT_PADDING = 32;

function MaskOptions() {
  const texts = t().canvas;
  const { mask_blur, mask_padding } = values.value;
  const isOnlyMasked = typeof mask_padding === "number";
  return (
    <div class="mask-options">
      <Slider
        field="mask_blur"
        label={texts.feather}
        value={mask_blur}
        fallback={4}
        min={0}
        max={64}
        step={1}
        onChange={(value) => set({ mask_blur: value })}
      />
      <div class="field">
        <label class="check" title={texts.onlyMaskedHint}>
          <input
            type="checkbox"
            checked={isOnlyMasked}
            onChange={(event) =>
              set({ mask_padding: event.currentTarget.checked ? DEFAULT_PADDING : undefined })
            }
          />
          {texts.onlyMasked}
        </label>
        {isOnlyMasked && (
          <Slider
            field="mask_padding"
            label={texts.padding}
            value={mask_padding}
            fallback={DEFAULT_PADDING}
            min={0}
            max={256}
            step={8}
            onChange={(value) => set({ mask_padding: value })}
          />
        )}
      </div>
    </div>
  );
}

function MarginFields() {
  const texts = t().canvas;
  const all = margins();
  return (
    <div class="margins">
      {SIDES.map((side) => (
        <label key={side} class="field">
          <span>{texts.sides[side]}</span>
          <input
            type="number"
            name={`outpaint.${side}`}
            min={0}
            value={all[side]}
            onChange={(event) => setMargin(side, event.currentTarget.valueAsNumber || 0)}
          />
        </label>
      ))}
      <p class="hint">{texts.outpaintHint}</p>
    </div>
  );
}
