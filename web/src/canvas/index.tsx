import { useEffect } from "preact/hooks";
import { t } from "../i18n";
import type { StoredImage } from "../state/images";
import { Handle, margins, SIDES } from "./frame";
import { MaskLayer } from "./mask-layer";
import { useNavigation } from "./navigation";
import { brushSize, redo, tool, undo, view } from "./state";
import { Toolbar } from "./toolbar";

/** The input image with the tools for a mask and for margins. */
export function ImageCanvas({ image }: { image: StoredImage }) {
  const navigation = useNavigation();
  useShortcuts();
  const { left, top, right, bottom } = margins();
  const [width, height] = [image.width + left + right, image.height + top + bottom];
  const percent = (pixels: number, of: number) => `${(100 * pixels) / of}%`;
  const { scale, x, y } = view.value;
  return (
    <>
      <div class={`image-canvas is-${tool.value} ${scale > 1 ? "is-enlarged" : ""}`} {...navigation}>
        <div
          class="frame"
          style={{
            aspectRatio: `${width} / ${height}`,
            maxWidth: `calc(var(--canvas-height) * ${width / height})`,
            transform: `translate(${x}px, ${y}px) scale(${scale})`,
          }}
          data-margins={[left, top, right, bottom].join(" ")}
        >
          <div
            class="layers"
            style={{
              left: percent(left, width),
              top: percent(top, height),
              width: percent(image.width, width),
              height: percent(image.height, height),
            }}
          >
            <img src={image.url} alt={t().input.alt} decoding="async" draggable={false} />
            <MaskLayer image={image} />
          </div>
          {tool.value === "outpaint" && SIDES.map((side) => <Handle key={side} side={side} image={image} />)}
        </div>
      </div>
      <Toolbar image={image} />
    </>
  );
}

const BRUSH_STEP = 1.2;

/** Keys of the tools, unless text is being typed. */
function useShortcuts(): void {
  useEffect(() => {
    const onKey = (event: KeyboardEvent) => {
      const target = event.target as HTMLElement;
      if (target.matches("input:not([type=range], [type=checkbox], [type=radio]), textarea, select")) return;
      if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") {
        event.preventDefault();
        if (event.shiftKey) redo();
        else undo();
        return;
      }
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "b") tool.value = "brush";
      else if (event.key === "e") tool.value = "eraser";
      else if (event.key === "v") tool.value = "move";
      else if (event.key === "[") brushSize.value = Math.max(1, Math.round(brushSize.value / BRUSH_STEP));
      else if (event.key === "]") brushSize.value = Math.ceil(brushSize.value * BRUSH_STEP);
    };
    document.addEventListener("keydown", onKey);
    return () => document.removeEventListener("keydown", onKey);
  }, []);
}
