// The denoising viewer, inside a gr.HTML: it follows the newest frame until the visitor moves the slider away from the end.
// gr.HTML provides element, props and watch. props.value is
// {status, done, num_steps, frames: [[step, timestep, x_t, x_0], ...], link}; link, the parameters of a finished run, goes into
// the address. The results below take the place of the last frame, which they are.
const viewer = element.querySelector(".viewer");
const [noisy, believed] = element.querySelectorAll("img");
const slider = element.querySelector("input");
const where = element.querySelector("output");
const status = element.querySelector(".status");
const NAMES = ["prompt", "class_labels", "batch_size", "num_inference_steps", "sampler", "guidance_scale", "seed", "last_seed"];
let following = true;
let stopped = ""; // what to say once the visitor has stopped it; frames that were on their way still arrive

function show(index) {
  const [step, timestep, x_t, x_0] = props.value.frames[index];
  noisy.src = x_t;
  believed.src = x_0;
  where.textContent = `step ${step} of ${props.value.num_steps}, t = ${timestep}`;
  slider.setAttribute("aria-valuetext", where.textContent);
  viewer.classList.toggle("finished", Boolean(props.value.link) && slider.value === slider.max);
}

function shareable(link) {
  const address = new URL(location);
  for (const name of NAMES) address.searchParams.delete(name);
  for (const [name, values] of Object.entries(link)) {
    for (const value of values) address.searchParams.append(name, value);
  }
  history.replaceState(history.state, "", address);
}

function render() {
  const frames = props.value?.frames ?? [];
  status.textContent = stopped || (props.value?.status ?? "");
  viewer.classList.toggle("empty", frames.length === 0);
  viewer.classList.remove("finished");
  if (props.value?.done && props.value.link) shareable(props.value.link);
  slider.disabled = frames.length < 2;
  if (frames.length === 0) {
    following = true;
    where.textContent = "";
    return;
  }
  slider.max = frames.length - 1;
  if (following) slider.value = slider.max;
  show(Number(slider.value));
}

slider.addEventListener("input", () => {
  following = slider.value === slider.max;
  show(Number(slider.value));
});
document.addEventListener("click", (event) => {
  if (event.target.closest("#generate")) {
    stopped = "";
    element.scrollIntoView({ block: "nearest" }); // on a phone it is below the button
  }
  if (!event.target.closest("#stop") || !props.value || props.value.done) return;
  status.textContent = stopped = "stopping";
});
document.addEventListener("ended", () => {
  if (stopped) status.textContent = stopped = "stopped";
});
watch("value", render);
render();
