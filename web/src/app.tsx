import { Form } from "./components/form";
import { Header } from "./components/header";
import { History } from "./components/history";
import { InputImage } from "./components/input-image";
import { KeyDialog } from "./components/key-dialog";
import { ModelNote } from "./components/model-note";
import { Result } from "./components/result";
import { RunBar } from "./components/run-bar";
import { t } from "./i18n";
import { keyNeeded } from "./state/session";

export function App() {
  return (
    <>
      <a class="skip" href="#result">
        {t().app.skip}
      </a>
      <Header />
      <ModelNote />
      <main class="columns">
        <section class="column input-column" aria-label={t().input.title}>
          <InputImage />
          <Form />
          <RunBar />
        </section>
        <section class="column result-column" id="result" aria-label={t().result.title} tabIndex={-1}>
          <Result />
          <History />
        </section>
      </main>
      {keyNeeded.value && <KeyDialog />}
    </>
  );
}
