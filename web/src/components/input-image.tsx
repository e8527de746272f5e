import { useEffect, useState } from "preact/hooks";
import { ImageCanvas } from "../canvas";
import { t } from "../i18n";
import { takes } from "../lib/request";
import { chooseInput, removeInput } from "../state/actions";
import { inputError, inputImage } from "../state/form";
import type { StoredImage } from "../state/images";
import { restoreSettings } from "../state/settings";
import { situation } from "../state/situation";
import { Examples } from "./examples";
import { FieldError } from "./field-error";

const ACCEPTED = "image/png,image/jpeg,image/webp";

/** The input image, and the place where one is dropped, pasted or chosen. The whole page takes drops and pastes. */
export function InputImage() {
  const isOver = useDropAndPaste();
  const image = inputImage.value;
  return (
    <div class={`input-image ${isOver ? "is-over" : ""}`}>
      {image ? <Chosen image={image} /> : <Empty />}
      <FieldError field="image" />
      {inputError.value && (
        <p class="error" role="alert">
          {inputError.value}
        </p>
      )}
    </div>
  );
}

function Empty() {
  return (
    <div class="drop-zone">
      <p class="drop-title">{t().input.drop}</p>
      <p class="hint">{t().input.hint}</p>
      <FileButton label={t().input.choose} isPrimary />
      <Examples />
    </div>
  );
}

function Chosen({ image }: { image: StoredImage }) {
  const now = situation.value;
  return (
    <figure class="chosen">
      {now && takes(now, "mask") ? (
        <ImageCanvas image={image} />
      ) : (
        <img src={image.url} alt={t().input.alt} width={image.width} height={image.height} decoding="async" />
      )}
      <figcaption>
        <span class="chosen-name" title={image.name}>
          {image.width} × {image.height}
        </span>
        <UploadState image={image} />
        <span class="spacer" />
        {image.metadata && (
          <button
            type="button"
            title={t().input.madeHere}
            onClick={() => restoreSettings(image.metadata ?? {})}
          >
            {t().result.restore}
          </button>
        )}
        <FileButton label={t().input.replace} />
        <button type="button" onClick={removeInput}>
          {t().input.remove}
        </button>
      </figcaption>
    </figure>
  );
}

function UploadState({ image }: { image: StoredImage }) {
  const upload = image.upload.value;
  const texts = t().input;
  let text = "";
  if (upload.state === "uploading") text = texts.uploading;
  else if (upload.state === "failed") text = texts.failed(upload.message);
  else if (image.scaledFrom)
    text = texts.scaled(image.scaledFrom.join("×"), `${image.width}×${image.height}`);
  return (
    <span class={upload.state === "failed" ? "error" : "hint"} role="status" data-upload={upload.state}>
      {text}
    </span>
  );
}

function FileButton({ label, isPrimary = false }: { label: string; isPrimary?: boolean }) {
  const choose = (event: Event & { currentTarget: HTMLInputElement }) => {
    const file = event.currentTarget.files?.[0];
    if (file) void chooseInput(file, file.name);
    // The same file can be chosen again.
    event.currentTarget.value = "";
  };
  return (
    <label class={`button file-button ${isPrimary ? "primary" : ""}`}>
      {label}
      <input type="file" accept={ACCEPTED} onChange={choose} />
    </label>
  );
}

/** Take images that are dropped anywhere on the page or pasted. Returns whether one is being dragged over it. */
function useDropAndPaste(): boolean {
  const [isOver, setIsOver] = useState(false);
  useEffect(() => {
    // A file that is no image is refused with a message when it is dropped; what is pasted may be meant for a field.
    const take = (event: Event, files: FileList | undefined, isDropped = false) => {
      const all = [...(files ?? [])];
      const file = all.find(({ type }) => type.startsWith("image/")) ?? (isDropped ? all[0] : undefined);
      if (!file) return;
      event.preventDefault();
      void chooseInput(file, file.name);
    };
    const over = (event: DragEvent) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      setIsOver(true);
    };
    const leave = (event: DragEvent) => {
      if (event.relatedTarget === null) setIsOver(false);
    };
    const drop = (event: DragEvent) => {
      setIsOver(false);
      // Places with a use of their own for a file have taken it.
      if (!event.defaultPrevented) take(event, event.dataTransfer?.files, true);
    };
    const paste = (event: ClipboardEvent) => take(event, event.clipboardData?.files);
    const listeners = { dragover: over, dragleave: leave, drop, paste } as unknown as Record<
      string,
      EventListener
    >;
    for (const [name, listener] of Object.entries(listeners)) document.addEventListener(name, listener);
    return () => {
      for (const [name, listener] of Object.entries(listeners)) document.removeEventListener(name, listener);
    };
  }, []);
  return isOver;
}
