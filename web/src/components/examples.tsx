import drawing from "../assets/drawing.png";
import house from "../assets/house.webp";
import { t } from "../i18n";
import { chooseInput } from "../state/actions";
import { set, values } from "../state/form";

const EXAMPLES = [
  { name: "drawing", url: drawing, prompt: "a photo of a lake in the mountains" },
  { name: "house", url: house, prompt: "a watercolor painting of a house in winter" },
];

/** Images to begin with, one click away. */
export function Examples() {
  return (
    <div class="examples">
      <span class="hint">{t().input.examples}</span>
      {EXAMPLES.map((example) => (
        <button
          key={example.name}
          type="button"
          class="example"
          title={t().input.example(example.name)}
          onClick={() => void choose(example)}
        >
          <img src={example.url} alt={t().input.example(example.name)} width={56} height={56} />
        </button>
      ))}
    </div>
  );
}

async function choose({ name, url, prompt }: (typeof EXAMPLES)[number]): Promise<void> {
  const response = await fetch(url);
  await chooseInput(await response.blob(), name);
  if (!values.value.prompt) set({ prompt });
}
