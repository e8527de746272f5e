import { t } from "../i18n";
import type { StoredImage } from "../state/images";
import { storeImage } from "../state/images";

interface Props {
  image: StoredImage | null;
  /** Name of the slot for assistive technology. */
  label: string;
  /** Text while there is no image. */
  placeholder: string;
  onChange: (image: StoredImage | null) => void;
  onError: (message: string) => void;
}

/** A small place for an image of its own: chosen as a file or dropped on it. */
export function ImageSlot({ image, label, placeholder, onChange, onError }: Props) {
  const take = async (files: FileList | null | undefined) => {
    const file = files?.[0];
    if (!file) return;
    try {
      onChange(await storeImage(file, file.name));
    } catch {
      onError(t().input.unreadable(file.name));
    }
  };
  return (
    <div class="slot">
      <label
        class="slot-image button"
        onDragOver={(event) => event.preventDefault()}
        onDrop={(event) => {
          event.preventDefault();
          void take(event.dataTransfer?.files);
        }}
      >
        {image ? <img src={image.url} alt="" /> : <span class="hint">{placeholder}</span>}
        <span class="hidden">{label}</span>
        <input
          type="file"
          accept="image/png,image/jpeg,image/webp"
          onChange={(event) => {
            void take(event.currentTarget.files);
            // The same file can be chosen again.
            event.currentTarget.value = "";
          }}
        />
      </label>
      {image && (
        <button type="button" class="slot-remove" title={t().input.remove} onClick={() => onChange(null)}>
          <span aria-hidden="true">×</span>
          <span class="hidden">{t().input.remove}</span>
        </button>
      )}
    </div>
  );
}
